# SPDX-License-Identifier: Apache-2.0
"""A ring with keys: its traffic cannot be read on the wire, and strangers' keys do not disturb it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from stages import free_base_port
from test_ring import where
from toys import ROOT, changed, ring_specs, threads

from zpptool.config.stage_spec import StageSpec
from zpptool.log import TextFormatter
from zpptool.wire.message.framing import HEAD
from zpptool.wire.security.key_files import generate, link_keys, write_key_files

pytestmark = pytest.mark.timeout(60)

SECRET = b"an activation that others must not see: "
ETH_P_ALL = 3


def keyed_specs(num_stages: int, directory: Path, *, keys: bool = True) -> tuple[StageSpec, ...]:
    """A ring over tcp whose stages bind every address of this machine."""
    files = write_key_files(generate(num_stages), directory / "keys")
    specs = ring_specs(num_stages, directory, base_port=free_base_port(num_stages + 1))
    return tuple(
        changed(
            spec,
            bind=spec.bind.replace("127.0.0.1", "0.0.0.0"),
            keys=str(file) if keys else "",
            insecure=not keys,
        )
        for spec, file in zip(specs, files, strict=True)
    )


class Sniffer:
    """Captures all traffic of the loopback interface, as an eavesdropper would.

    Attributes:
        captured: the bytes of every frame to or from the watched ports.
    """

    def __init__(self, ports: set[int]) -> None:
        self.captured = bytearray()
        self._ports = {port.to_bytes(2, "big") for port in ports}
        self._over = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                frame = self._socket.recv(1 << 17)
            except TimeoutError:
                continue
            if frame[34:36] in self._ports or frame[36:38] in self._ports:  # Ethernet 14, IPv4 20, then both ports
                self.captured += frame[54:]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@contextmanager
def sniffing(specs: tuple[StageSpec, ...]) -> Iterator[Sniffer]:
    try:
        sniffer = Sniffer({urlsplit(spec.bind).port or 0 for spec in specs})
    except PermissionError as cause:
        pytest.skip(f"a packet socket needs CAP_NET_RAW: {cause}")
    try:
        yield sniffer
    finally:
        sniffer.close()


@pytest.mark.skipif(not hasattr(socket, "AF_PACKET"), reason="packet sockets are Linux's")
@pytest.mark.parametrize("keys", [True, False])
def test_what_an_eavesdropper_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: bool) -> None:
    """Without keys the same sniffer finds the payload, so it would with keys too if that were sent in clear text.

    The stages share this process, so small messages would soon leave TCP for a Unix socket that no sniffer sees.
    """
    monkeypatch.setattr("zpptool.wire.link.inbound.this_namespace", lambda: "another host")
    specs = keyed_specs(2, tmp_path, keys=keys)
    payload = SECRET + os.urandom(8).hex().encode()
    with sniffing(specs) as sniffer, threads(specs) as ring:
        end = time.monotonic() + 20
        while len(sniffer.captured) < 20 * len(payload) or (not keys and payload not in sniffer.captured):
            assert time.monotonic() < end, "the sniffer captures nothing"
            assert ring.ask("step", payload) == [payload + b" 0 1"]
        captured = bytes(sniffer.captured)
    assert (payload in captured) is not keys
    assert (b"ZPPW" in captured) is not keys
    assert (b"CURVE" in captured) is keys


def hostile(context: zmq.Context, kind: int, **keys: bytes) -> zmq.Socket:
    made = context.socket(kind)
    made.linger = 0
    for name, key in keys.items():
        setattr(made, f"curve_{name}", key)
    return made


def test_strangers_with_any_keys_are_refused_and_do_not_disturb_the_ring(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zpptool")
    specs = keyed_specs(3, tmp_path)
    old = generate(3)
    public, secret = zmq.curve_keypair()
    with threads(specs) as ring, zmq.Context() as context:
        for spec in specs:
            address = spec.bind.replace("0.0.0.0", "127.0.0.1")
            peer = HEAD if spec.is_last else spec.stage + 1
            former = link_keys(old[max(peer, 0)], peer, spec.stage)
            own = files_public(spec)
            for keys in (
                {},
                {"publickey": public, "secretkey": secret, "serverkey": own},
                {"publickey": former.public, "secretkey": former.secret, "serverkey": own},
                {"publickey": former.public, "secretkey": former.secret, "serverkey": former.peer_public},
            ):
                for kind in (zmq.DEALER, zmq.PULL):
                    with hostile(context, kind, **keys) as stranger:
                        stranger.connect(address)
                        for number in range(5):
                            payload = f"{number}".encode()
                            assert ring.ask("step", payload) == [payload + b" 0 1 2"]
                            time.sleep(0.01)
        assert ring.ask("where", from_all=True) == where(3)
        assert ring.head.fault is None
    lines = [TextFormatter().format(record) for record in caplog.records]
    for stage in range(3):
        assert any(line.startswith(f"zpptool stage {stage}: warning: tcp://0.0.0.0:") for line in lines), lines
    assert "a connection from 127.0.0.1 was refused: its key" in caplog.text


def files_public(spec: StageSpec) -> bytes:
    from zpptool.wire.security.key_files import read_key_file

    return read_key_file(Path(spec.keys)).own[-1].public.encode()


def test_a_stage_with_keys_of_another_generation_names_the_cause(tmp_path: Path) -> None:
    """Its log asks whether the key files were generated together."""
    specs = keyed_specs(2, tmp_path)
    other = write_key_files(generate(2), tmp_path / "others")
    wrong = changed(specs[1], keys=str(other[1]), start_timeout_s=2.0)
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from toys import run_stage\nfrom zpptool.config.stage_spec import spec_from_argv\n"
        "from zpptool.log import configure\nconfigure()\n"
        "run_stage(spec_from_argv(sys.argv))"
    )
    first = changed(specs[0], start_timeout_s=2.0)
    from toys import Ring

    ring = Ring([first], head=first)
    try:
        ring.start()
        ran = subprocess.run(
            [sys.executable, "-c", code, wrong.to_json()], cwd=ROOT, capture_output=True, text=True, timeout=50
        )
    finally:
        ring.close()
    assert "were the key files generated together?" in ran.stderr
    assert ran.returncode != 0
