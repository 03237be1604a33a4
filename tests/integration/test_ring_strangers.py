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

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError
from zpptool.ring import messages as c
from zpptool.wire.link import LinkReceiver, Party, Window
from zpptool.wire.message.framing import HEAD, Kind, Limits, decode, encode
from zpptool.wire.protocol.link_messages import Hello, Refused, Taken, Told, Welcome, Word, decode_word, encode_word

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
        for kind in (zmq.PUSH, zmq.PULL, zmq.DEALER, zmq.ROUTER, zmq.SUB, zmq.REQ):
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


def wire(header: bytes, *frames: bytes, sequence: int = 0, kind: Kind = Kind.CONTROL, session: int = 7) -> list[bytes]:
    parts = encode(kind, header, frames, source=HEAD, epoch=0, sequence=sequence, session=session)
    return [bytes(part) for part in parts]


def word(said: Word, session: int = 0) -> list[bytes]:
    return wire(encode_word(said), kind=Kind.LINK, session=session)


HELLO = Hello(Party(1), Window(), Limits(), {})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (word(HELLO), "another stage 1 is connected already"),
        (word(Hello(Party(0), Window(), Limits(), {})), "stage 1 is awaited here, not stage 0"),
        (word(Hello(Party(1, run_id="mine"), Window(), Limits(), {})), "stage 1 belongs to run mine"),
        (word(Hello(Party(1, 7), Window(), Limits(), {})), "stage 1 counts 7 stages"),
        ([b"hello"], "a preamble has 32"),
        ([word(HELLO)[0][:4] + b"\x07" + word(HELLO)[0][5:]], "wire version 7, this side speaks"),
        (wire(os.urandom(100), kind=Kind.LINK), "cannot be read"),
        ([*word(HELLO), b"more"], "1 frames came, 0 were announced"),
    ],
    ids=["twin", "another place", "another run", "another plan", "noise", "version", "no word", "frames"],
)
def test_a_hostile_receiver_is_refused_in_words_and_the_ring_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[bytes], told: str
) -> None:
    specs = ring_specs(2, tmp_path)
    with threads(specs) as ring, zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.rcvtimeo = 5000
        stranger.connect(specs[0].bind)
        stranger.send_multipart(said)
        answer = decode_word(decode(stranger.recv_multipart(), Limits()).header)
        assert isinstance(answer, Refused)
        assert told in answer.reason
        for number in range(20):
            stranger.send_multipart(word(Taken(1 << 60)))
            stranger.send_multipart(word(Told(b"no fault at all")))
            assert ring.ask("step", str(number).encode()) == [f"{number} 0 1".encode()]
        assert ring.head.fault is None
        assert not stranger.poll(100), "a stranger was sent something"
    assert f"stage 0: {specs[0].bind}: somebody was refused: " in capsys.readouterr().err


@contextmanager
def impostor(spec: StageSpec, *messages: list[bytes], welcome: bool = True) -> Iterator[None]:
    """Somebody who holds the address that a stage connects to, welcomes it as he should, and then says this."""

    def speak() -> None:
        guest, _hello = sender.recv_multipart()
        party = Party(spec.num_stages - 1 if spec.is_first else spec.stage - 1, run_id="his own" * (not spec.is_first))
        first = [word(Welcome(party, Window(), {}), session=7)] if welcome else []
        for message in (*first, *messages):
            sender.send_multipart([guest, *message])

    with zmq.Context() as context, context.socket(zmq.ROUTER) as sender, ThreadPoolExecutor(1) as pool:
        sender.setsockopt(zmq.SNDTIMEO, 5000)
        sender.setsockopt(zmq.RCVTIMEO, 5000)
        sender.linger = 2000
        sender.bind(spec.connect)
        said = pool.submit(speak)
        yield
        said.result(5)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (wire(c.encode(c.Stop(reason="go", broke=False)), session=8), "it belongs to another session"),
        (wire(b"\x80", kind=Kind.LINK), "a word of the link that cannot be read"),
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
    with impostor(specs[0], [b"hello"], welcome=False):
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
        with LinkReceiver(spec.bind, stage=HEAD, peer=2):
            error = heard.exception(5)
    assert isinstance(error, ZppError)
    assert "has waited 1 s for the roll call from stage 1" in error.message
