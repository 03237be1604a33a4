# SPDX-License-Identifier: Apache-2.0
"""What strangers may send to a ring's ports: the ring goes on, or the affected stage ends with a named error.

This is no claim of security: without keys, a process that speaks the protocol is accepted as the stage before.
"""

from __future__ import annotations

import logging
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
from toys import Ring, changed, ring_specs, run_stage, threads

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.log import TextFormatter
from zpptool.ring.messages import Call, Fault, Reply, Stop, Verdict, encode_control
from zpptool.wire.link import LinkReceiver, Party, Window
from zpptool.wire.message.framing import HEAD, Kind, Limits, decode, encode
from zpptool.wire.protocol.link_messages import (
    Acknowledgement,
    Hello,
    LinkMessage,
    Notification,
    Refused,
    Welcome,
    decode_link_message,
    encode_link_message,
)

pytestmark = pytest.mark.timeout(20)

HTTP = b"GET / HTTP/1.1\r\nHost: stage\r\nUser-Agent: a probe at the wrong port\r\n\r\n"
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


def test_bytes_that_are_not_zeromq_do_not_disturb_the_ring(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path, base_port=free_base_port(3))
    with threads(specs) as ring, ExitStack() as held:
        for name, garbage in GARBAGE.items():
            for spec in (*specs, *specs):
                stranger = held.enter_context(connect(spec.bind))
                with suppress(ConnectionError):  # the connection was closed
                    stranger.sendall(garbage)
            for _ in range(4):
                assert ring.ask("step", name.encode(), within_s=5) == [f"{name} 0 1".encode()]
                time.sleep(0.02)
        held.close()
        for _ in range(4):
            assert ring.ask("where", from_all=True) == where(2)
            time.sleep(0.02)
        assert ring.head.fault is None


def test_zeromq_peers_of_another_kind_do_not_disturb_the_ring(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path, base_port=free_base_port(3))
    with threads(specs) as ring, zmq.Context() as context, ExitStack() as held:
        for kind in (zmq.PUSH, zmq.PULL, zmq.DEALER, zmq.ROUTER, zmq.SUB, zmq.REQ):
            stranger = held.enter_context(context.socket(kind))
            stranger.linger = 0
            for spec in specs:
                stranger.connect(spec.bind)
            for _ in range(10):
                assert ring.ask("step", b"1", within_s=5) == [b"1 0 1"]
                with suppress(zmq.ZMQError):  # its own queue may accept it, but it is not read
                    stranger.send(b"hello", zmq.DONTWAIT)
                time.sleep(0.02)
        assert ring.ask("where", from_all=True) == where(2)
        assert ring.head.fault is None


def wire(header: bytes, *frames: bytes, sequence: int = 0, kind: Kind = Kind.CONTROL, session: int = 7) -> list[bytes]:
    parts = encode(kind, header, frames, source=HEAD, epoch=0, sequence=sequence, session=session)
    return [bytes(part) for part in parts]


def link_message(message: LinkMessage, session: int = 0) -> list[bytes]:
    return wire(encode_link_message(message), kind=Kind.LINK, session=session)


HELLO = Hello(Party(1), Window(), Limits(), {})


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (link_message(HELLO), "another stage 1 is connected already"),
        (link_message(Hello(Party(0), Window(), Limits(), {})), "stage 1 is awaited here, not stage 0"),
        (link_message(Hello(Party(1, run_id="mine"), Window(), Limits(), {})), "stage 1 belongs to run mine"),
        (link_message(Hello(Party(1, 7), Window(), Limits(), {})), "stage 1 counts 7 stages"),
        ([b"hello"], "a preamble has 32"),
        ([link_message(HELLO)[0][:4] + b"\x07" + link_message(HELLO)[0][5:]], "wire version 7, this side speaks"),
        (wire(os.urandom(100), kind=Kind.LINK), "cannot be read"),
        ([*link_message(HELLO), b"more"], "1 frames came, 0 were announced"),
    ],
    ids=["twin", "another place", "another run", "another plan", "noise", "version", "no word", "frames"],
)
def test_a_hostile_receiver_is_refused_with_a_reason_and_the_ring_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: list[bytes], text: str
) -> None:
    caplog.set_level(logging.INFO, "zpptool")
    specs = ring_specs(2, tmp_path)
    with threads(specs) as ring, zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.rcvtimeo = 5000
        stranger.connect(specs[0].bind)
        stranger.send_multipart(sent)
        answer = decode_link_message(decode(stranger.recv_multipart(), Limits()).header)
        assert isinstance(answer, Refused)
        assert text in answer.reason
        for number in range(20):
            stranger.send_multipart(link_message(Acknowledgement(1 << 60)))
            stranger.send_multipart(link_message(Notification(b"no fault at all")))
            assert ring.ask("step", str(number).encode()) == [f"{number} 0 1".encode()]
        assert ring.head.fault is None
        assert not stranger.poll(100), "a stranger was sent something"
    lines = [TextFormatter().format(record) for record in caplog.records]
    refused = f"zpptool stage 0: warning: {specs[0].bind}: a receiver was refused: "
    assert any(line.startswith(refused) for line in lines), lines


STOP = encode_control(Stop(reason="go", broke=False))


@contextmanager
def impostor(spec: StageSpec, *messages: list[bytes], welcome: bool = True) -> Iterator[None]:
    """A process at the address that a stage connects to: it accepts the link correctly, then sends these messages."""

    def send_all() -> None:
        guest, _hello = sender.recv_multipart()
        party = Party(spec.num_stages - 1 if spec.is_first else spec.stage - 1, run_id="its own" * (not spec.is_first))
        first = [link_message(Welcome(party, Window(), {}), session=7)] if welcome else []
        for message in (*first, *messages):
            sender.send_multipart([guest, *message])

    with zmq.Context() as context, context.socket(zmq.ROUTER) as sender, ThreadPoolExecutor(1) as pool:
        sender.setsockopt(zmq.SNDTIMEO, 5000)
        sender.setsockopt(zmq.RCVTIMEO, 5000)
        sender.linger = 2000
        sender.bind(spec.connect)
        sending = pool.submit(send_all)
        yield
        sending.result(5)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (wire(STOP, session=8), "it belongs to another session"),
        (wire(b"\x80", kind=Kind.LINK), "a link message that cannot be read"),
        ([b""], "a preamble has"),
        ([b"hello"], "a preamble has"),
        ([bytes(64)], "another protocol"),
        ([wire(b"")[0][:-1]], "a preamble has"),
        (wire(b""), "cannot be read"),
        (wire(os.urandom(100)), "cannot be read"),
        (wire(b"\x91" * 100_000), "cannot be read"),
        (wire(STOP, bytes(1 << 17), bytes(1 << 17)), "2 frames with one control"),
        (wire(STOP, sequence=5), "5 messages were lost"),
        (wire(encode_control(Call(number=1, method="where", from_all=True)), sequence=5), "5 messages were lost"),
    ],
)
def test_an_impostor_ends_the_stage_with_an_error_that_names_it(
    tmp_path: Path, message: list[bytes], text: str
) -> None:
    spec = changed(ring_specs(3, tmp_path)[1], step_timeout_s=1.0)
    with impostor(spec, message), ThreadPoolExecutor(1) as pool:
        error = pool.submit(run_stage, spec).exception(5)
    assert isinstance(error, ZppError), error
    assert text in error.message
    assert "stage 0" in error.message


def test_a_head_that_receives_noise_names_where_it_came_from(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    with impostor(specs[0], [b"hello"], welcome=False):
        ring = Ring([specs[0]])
        try:
            ring.start()
            with pytest.raises(ZppError, match="refused a message from stage 1"):
                ring.gather()
        finally:
            ring.close()


def test_messages_out_of_turn_have_no_effect(tmp_path: Path) -> None:
    """Calls, verdicts and tensors before the roll call, and answers without a call."""
    spec = changed(ring_specs(3, tmp_path)[2], start_timeout_s=1.0)
    controls = [
        Call(number=1, method="die", from_all=True),
        Verdict(reasons=()),
        Reply(number=9, stage=7),
        Fault(stage=9, number=9, message="no", detail=""),
    ]
    messages = [wire(encode_control(control), b"2", sequence=place) for place, control in enumerate(controls)]
    messages.append(wire(b"tensors", b"2", sequence=len(controls), kind=Kind.TENSORS))
    with impostor(spec, *messages), ThreadPoolExecutor(1) as pool:
        stage = pool.submit(run_stage, spec)
        with LinkReceiver(spec.bind, stage=HEAD, peer=2):
            error = stage.exception(5)
    assert isinstance(error, ZppError)
    assert "has waited 1 s for the roll call from stage 1" in error.message
