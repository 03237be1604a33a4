# SPDX-License-Identifier: Apache-2.0
"""An unusable address is refused with exit code 5 and a next step, before anything waits for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender
from zpptool.wire.message.framing import Kind
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.sockets import make_socket


def open_push(endpoint: str) -> None:
    """Bind and close."""
    LinkSender(endpoint, stage=0, peer=1, options=LinkOptions(security=LinkSecurity(insecure=True))).close()


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("127.0.0.1:5555", "is not an endpoint"),
        ("tcp://127.0.0.1", "is not an endpoint"),
        ("tcp://127.0.0.1:http", "is not an endpoint"),
        ("tcp:// :5", "is not an endpoint"),
        ("tcp://::1:5555", "is not an endpoint"),
        ("inproc://stage0", "is not an endpoint"),
        ("udp://127.0.0.1:5555", "is not an endpoint"),
        ("tcp://127.0.0.1:70000", "above 65535"),
        ("tcp://no-such-host.invalid:5555", "cannot be resolved"),
        ("tcp://192.0.2.1:5555", "no such address"),
        ("ipc://", "names no path"),
        ("ipc:///no/such/directory/socket", "is not a directory"),
        ("ipc:///tmp/" + "x" * 200, "at most 107"),
    ],
)
def test_an_endpoint_that_cannot_be_bound_is_refused(endpoint, expected):
    with pytest.raises(ZppError, match=expected) as caught:
        open_push(endpoint)
    assert caught.value.exit_code is ExitCode.ADDRESS


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://*:5555", "no host"),
        ("tcp://127.0.0.1:*", "no port"),
        ("tcp://127.0.0.1:0", "no port"),
        ("tcp://no-such-host.invalid:5555", "cannot be resolved"),
    ],
)
def test_an_endpoint_that_cannot_be_connected_to_is_refused(endpoint, expected):
    with pytest.raises(ZppError, match=expected) as caught:
        LinkReceiver(endpoint, stage=1, peer=0, options=LinkOptions(security=LinkSecurity(insecure=True)))
    assert caught.value.exit_code is ExitCode.ADDRESS


def test_a_port_in_use_is_reported():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ZppError, match=f"{port} is in use") as caught:
            open_push(f"tcp://127.0.0.1:{port}")
    assert caught.value.exit_code is ExitCode.ADDRESS
    assert caught.value.hint
    open_push(f"tcp://127.0.0.1:{port}")


def test_an_ipc_path_in_use_is_not_taken_over(tmp_path: Path):
    endpoint = f"ipc://{tmp_path}/s"
    with LinkSender(endpoint, stage=0, peer=1), pytest.raises(ZppError, match="in use"):
        open_push(endpoint)


def test_an_abandoned_ipc_path_is_bound_again(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(tmp_path / "s"))
    open_push(f"ipc://{tmp_path}/s")


def test_a_file_at_an_ipc_path_is_left_alone(tmp_path: Path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ZppError, match="a file, not a socket"):
        open_push(f"ipc://{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_the_bound_port_is_returned():
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1) as link:
        host, port = link.endpoint.rsplit(":", 1)
    assert host == "tcp://127.0.0.1"
    assert int(port) > 0


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_can_be_bound():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with (
        LinkSender("tcp://[::1]:*", stage=0, peer=1) as sender,
        LinkReceiver(sender.endpoint, stage=1, peer=0) as receiver,
    ):
        assert receiver.endpoint.startswith("tcp://[::1]:")


def test_no_option_is_left_at_an_unbounded_default():
    with (
        zmq.Context() as context,
        make_socket(context, zmq.DEALER, to_send=7, to_receive=8, max_frame_bytes=999) as made,
    ):
        assert (made.get(zmq.SNDHWM), made.get(zmq.RCVHWM), made.get(zmq.MAXMSGSIZE)) == (7, 8, 999)
        assert 0 < made.get(zmq.LINGER) <= 2000
        assert made.get(zmq.HEARTBEAT_IVL) > 0
        assert made.get(zmq.HEARTBEAT_TIMEOUT) > 0


FLOOD = """
import sys, time, zmq
with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
    stranger.linger = 0
    stranger.rcvhwm = 1
    stranger.connect(sys.argv[1])
    stranger.send(b"not a link message")
    stranger.poll()  # he is answered
    print("connected", flush=True)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            stranger.send(b"not a link message", zmq.DONTWAIT)
        except zmq.Again:
            time.sleep(0.01)
"""


def test_a_stranger_that_disconnects_with_a_full_queue_does_not_end_the_process():
    """With heartbeats of its own the binding end's process was aborted by libzmq, two seconds later."""
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1) as sender:
        command = [sys.executable, "-c", FLOOD, sender.endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as stranger:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == b"connected\n"
            time.sleep(0.3)  # answers that he does not read lie in his queue
            sender._turn.enter(Deadline(5))  # as during a send: no thread reads the socket
            try:
                assert stranger.wait(30) == 0
                time.sleep(2.5)
            finally:
                sender._turn.leave()
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as receiver:
            sender.send(Kind.CONTROL, b"still here", timeout_s=10)
            assert receiver.recv(10).header == b"still here"
