# SPDX-License-Identifier: Apache-2.0
"""What strangers may send into a ring's ports: the ring goes on, or the stage that is harmed ends with a named error.

Nothing here is a claim of safety: who speaks the protocol as the stage before would is believed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from stages import free_base_port
from test_ring import where
from toys import Ring, changed, ring_specs, stage_life, threads

from zpptool.errors import ZppError
from zpptool.pipeline.ring import control as c
from zpptool.pipeline.spec import StageSpec
from zpptool.wire.messages import HEAD, Kind, encode

pytestmark = pytest.mark.timeout(20)

HTTP = b"GET / HTTP/1.1\r\nHost: stage\r\nUser-Agent: a probe of somebody who has mistaken the port\r\n\r\n"
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(506)
ZMTP_1 = b"\x01\x00"
ZMTP_2 = b"\xff" + bytes(8) + b"\x7f\x01\x07\x00\x00"
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
ENDLESS = GREETING + b"\x02" + b"\xff" * 8


def connect(endpoint: str) -> socket.socket:
    address = urlsplit(endpoint)
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port))


GARBAGE = {
    "nothing": b"", "http": HTTP, "tls": TLS, "zmtp 1": ZMTP_1, "zmtp 2": ZMTP_2, "noise": os.urandom(1 << 16),
    "greeting": GREETING, "greeting and noise": GREETING + os.urandom(1 << 12), "a frame without end": ENDLESS,
}  # fmt: skip


def test_bytes_that_are_no_zeromq_disturb_nobody(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path, base_port=free_base_port(3))
    with threads(specs) as ring, ExitStack() as held:
        for name, garbage in GARBAGE.items():
            for spec in (*specs, *specs):
                stranger = held.enter_context(connect(spec.bind))
                with suppress(ConnectionError):  # it was shown the door
                    stranger.sendall(garbage)
            for _ in range(4):
                assert ring.ask("step", name.encode(), within_s=5) == [f"{name} 0 1".encode()]
                time.sleep(0.02)
        held.close()
        for _ in range(4):
            assert ring.ask("where", from_all=True) == where(2)
            time.sleep(0.02)
        assert ring.head.fault is None


def test_zeromq_peers_of_another_kind_disturb_nobody(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path, base_port=free_base_port(3))
    with threads(specs) as ring, zmq.Context() as context, ExitStack() as held:
        for kind in (zmq.PUSH, zmq.DEALER, zmq.SUB, zmq.REQ):
            stranger = held.enter_context(context.socket(kind))
            stranger.linger = 0
            for spec in specs:
                stranger.connect(spec.bind)
            for _ in range(10):
                assert ring.ask("step", b"1", within_s=5) == [b"1 0 1"]
                with suppress(zmq.ZMQError):  # its own queue may take it, but nobody reads it
                    stranger.send(b"hello", zmq.DONTWAIT)
                time.sleep(0.02)
        assert ring.ask("where", from_all=True) == where(2)
        assert ring.head.fault is None


def test_a_second_receiver_ends_the_pipeline_with_an_error_that_names_the_place(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    with threads(specs) as ring, zmq.Context() as context, context.socket(zmq.PULL) as stranger:
        stranger.connect(specs[0].bind)
        while not ring.broken.wait(0.1):
            ring.head.call("where", b"", from_all=False)
        errors = " ".join(str(life.exception(5)) for life in ring.stages)
    assert "2 receivers are connected where stage 1 alone should be" in errors or "went elsewhere" in errors


@contextmanager
def impostor(spec: StageSpec, *messages: list[bytes]) -> Iterator[None]:
    """Somebody who holds the address that a stage connects to, and says this as soon as the stage is there."""

    def speak() -> None:
        for message in messages:
            sender.send_multipart(message)

    with zmq.Context() as context, context.socket(zmq.PUSH) as sender, ThreadPoolExecutor(1) as pool:
        sender.setsockopt(zmq.SNDTIMEO, 5000)
        sender.linger = 2000
        sender.bind(spec.connect)
        said = pool.submit(speak)
        yield
        said.result(5)


def wire(header: bytes, *frames: bytes, sequence: int = 0, kind: Kind = Kind.CONTROL) -> list[bytes]:
    parts = encode(kind, header, frames, source=HEAD, epoch=0, sequence=sequence, session=7)
    return [bytes(part) for part in parts]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ([b""], "a preamble has"),
        ([b"hello"], "a preamble has"),
        ([bytes(64)], "another protocol"),
        ([wire(b"")[0][:-1]], "a preamble has"),
        (wire(b""), "cannot be read"),
        (wire(os.urandom(100)), "cannot be read"),
        (wire(b"\x91" * 100_000), "cannot be read"),
        (wire(c.encode(c.Stop(reason="go", broke=False)), bytes(1 << 17), bytes(1 << 17)), "2 frames with one control"),
        (wire(c.encode(c.Stop(reason="go", broke=False)), sequence=5), "5 messages were lost"),
        (wire(c.encode(c.Call(number=1, method="where", from_all=True)), sequence=5), "5 messages were lost"),
    ],
)
def test_what_an_impostor_says_ends_the_stage_with_his_address(tmp_path: Path, message: list[bytes], told: str) -> None:
    spec = changed(ring_specs(3, tmp_path)[1], step_timeout_s=1.0)
    with impostor(spec, message), ThreadPoolExecutor(1) as pool:
        error = pool.submit(stage_life, spec).exception(5)
    assert isinstance(error, ZppError), error
    assert told in error.message
    assert "stage 0" in error.message


def test_a_head_that_hears_noise_says_where_it_came_from(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    with impostor(specs[0], [b"hello"]):
        ring = Ring([specs[0]])
        try:
            ring.start()
            with pytest.raises(ZppError, match="refused a message from stage 1"):
                ring.gather()
        finally:
            ring.close()


def test_words_out_of_turn_are_not_obeyed(tmp_path: Path) -> None:
    """Calls, verdicts and tensors before the roll call, and answers that nobody asked for."""
    spec = changed(ring_specs(3, tmp_path)[2], start_timeout_s=1.0)
    said = [
        c.Call(number=1, method="die", from_all=True),
        c.Verdict(reasons=()),
        c.Reply(number=9, stage=7),
        c.Fault(stage=9, number=9, message="no", detail=""),
    ]
    messages = [wire(c.encode(control), b"2", sequence=place) for place, control in enumerate(said)]
    messages.append(wire(b"tensors", b"2", sequence=len(said), kind=Kind.TENSORS))
    with impostor(spec, *messages), ThreadPoolExecutor(1) as pool:
        heard = pool.submit(stage_life, spec)
        with zmq.Context() as context, context.socket(zmq.PULL) as head:
            head.connect(spec.bind)
            error = heard.exception(5)
    assert isinstance(error, ZppError)
    assert "has waited 1 s for the roll call from stage 1" in error.message
