# SPDX-License-Identifier: Apache-2.0
"""Attacks on a front with connections: silent, slow, too many, too large."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.certificates import certificate
from tests.fronts import RunningGateway, ToyServer, gateway_of
from tests.hostile.rawhttp import connect, read_all, send_raw, status_of
from zpptool.net.connection_limits import ConnectionLimits

pytestmark = pytest.mark.timeout(120)

QUICK = ConnectionLimits(header_s=1.0, body_s=1.5, keep_alive_s=1)
SILENT, SILENT_BEYOND_FILES = 100, 120
BEGUN = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def completes(gateway: RunningGateway | str) -> bool:
    url = gateway if isinstance(gateway, str) else gateway.url
    return httpx.post(f"{url}/v1/completions", json={}, timeout=10, trust_env=False).status_code == 200


def drip(connection: socket.socket, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        connection.sendall(b"G")
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 408),
        (b"POST /v1/comp", 408),
        (BEGUN, 408),
        (BEGUN + b"content-length: 10\r\n\r\n", 408),
        (BEGUN + b"content-length: 10\r\n\r\n{}", 408),
        (BEGUN + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", 408),
        (b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        (b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\nGET /li", 200),
        (b"POST /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n", 405),
    ],
)
def test_a_connection_whose_request_does_not_arrive_is_closed(server: ToyServer, sent: bytes, status: int) -> None:
    with gateway_of([server], connections=QUICK) as gateway, connect(gateway.url) as stranger:
        began = time.monotonic()
        stranger.sendall(sent)
        received = read_all(stranger)
        assert time.monotonic() - began < 9
        assert status_of(received) == status
        assert completes(gateway)


@pytest.mark.parametrize("begun", [b"", BEGUN + b"content-length: 1000\r\n\r\n"])
def test_a_byte_now_and_then_does_not_prolong_a_deadline(server: ToyServer, begun: bytes) -> None:
    with gateway_of([server], connections=QUICK) as gateway, connect(gateway.url) as stranger:
        began = time.monotonic()
        stranger.sendall(begun)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            drip(stranger, seconds=10)
        assert time.monotonic() - began < 5


def test_headers_beyond_the_limit_are_refused(server: ToyServer) -> None:
    with gateway_of([server]) as gateway:
        fits = send_raw(gateway.url, "GET /livez HTTP/1.1", "host: localhost", f"x: {'x' * 60_000}")
        assert status_of(fits) == 200
        with connect(gateway.url) as stranger:
            stranger.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * (66 << 10))
            assert status_of(read_all(stranger)) in (0, 400)
        assert completes(gateway)


def test_idle_connections_do_not_lock_other_clients_out(
    server: ToyServer, record_property: Callable[[str, object], None]
) -> None:
    record_property("silent connections", SILENT)
    record_property("connections that the front takes", 20)
    limits = ConnectionLimits(connections=20, per_address=20, header_s=60.0, body_s=60.0)
    with gateway_of([server], connections=limits) as gateway, ExitStack() as stack:
        for number in range(SILENT):
            stranger = stack.enter_context(connect(gateway.url))
            if number % 2:
                stranger.sendall(BEGUN + b"content-length: 1000\r\n\r\n{")
        for _ in range(10):
            assert completes(gateway)


def test_one_address_gets_a_limited_number_of_connections(server: ToyServer) -> None:
    limits = ConnectionLimits(connections=20, per_address=4, header_s=60.0)
    with gateway_of([server], connections=limits) as gateway, ExitStack() as stack:
        strangers = [stack.enter_context(connect(gateway.url, 5.0)) for _ in range(8)]
        assert [read_all(each) for each in strangers[:4]] == [b""] * 4
        with pytest.raises(TimeoutError):
            strangers[-1].recv(1)


def test_idle_connections_do_not_lock_other_clients_out_with_64_descriptors(
    record_property: Callable[[str, object], None],
) -> None:
    record_property("silent connections", SILENT_BEYOND_FILES)
    command = [sys.executable, "-m", "tests.hostile.small_front"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as front:
        assert front.stdin is not None
        assert front.stdout is not None
        try:
            url = front.stdout.readline().strip()
            with ExitStack() as stack:
                for _ in range(SILENT_BEYOND_FILES):
                    stack.enter_context(connect(url))
                for _ in range(5):
                    assert completes(url)
        finally:
            front.stdin.close()
            front.terminate()


def test_a_handshake_of_tls_has_a_deadline_and_is_counted(server: ToyServer, tmp_path: Path) -> None:
    files = certificate(tmp_path)
    limits = ConnectionLimits(connections=4, per_address=4, header_s=1.0)
    trusted = ssl.create_default_context(cafile=str(files[0]))
    with gateway_of([server], tls=files, connections=limits) as gateway, ExitStack() as stack:
        strangers = [stack.enter_context(connect(gateway.url)) for _ in range(10)]
        answer = httpx.get(f"{gateway.url}/v1/models", verify=trusted, trust_env=False, timeout=10)
        assert answer.status_code == 200
        assert [read_all(each) for each in strangers] == [b""] * 10


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_tls_is_1_2_or_later_with_forward_secrecy(
    server: ToyServer, tmp_path: Path, version: ssl.TLSVersion, accepted: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that the version is obsolete is the point
        context.maximum_version = context.minimum_version = version
    with gateway_of([server], tls=certificate(tmp_path)) as gateway, connect(gateway.url) as plain:
        if not accepted:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(plain)
            return
        with context.wrap_socket(plain) as secured:
            name, protocol, _ = secured.cipher() or ("", "", 0)
            assert protocol == "TLSv1.3" or name.startswith("ECDHE")
            secured.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert status_of(secured.recv(4096)) == 200


def test_all_bodies_together_have_a_limit(server: ToyServer) -> None:
    with gateway_of([server], buffered_bytes=150_000) as gateway, connect(gateway.url) as first:
        first.sendall(BEGUN + b"content-length: 100001\r\n\r\n" + b"x" * 100_000)
        url = f"{gateway.url}/v1/completions"
        gateway.until(lambda: httpx.post(url, json="x" * 100_000, trust_env=False, timeout=10).status_code == 503)
        busy = httpx.post(url, json="x" * 100_000, trust_env=False, timeout=10)
        assert busy.json()["error"]["code"] == "server_busy"
        assert busy.headers["retry-after"]
        assert completes(gateway)
        first.shutdown(socket.SHUT_RDWR)
        gateway.until(lambda: httpx.post(url, json="x" * 100_000, trust_env=False, timeout=10).status_code == 200)
