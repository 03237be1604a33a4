# SPDX-License-Identifier: Apache-2.0
"""Large messages are split and assembled again: whole and once, by chunks or by shared memory, compressed or not."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.wire.compression.adaptive import AdaptiveCompression, WireCodec
from zpptool.wire.link.buffer_pool import BufferPool
from zpptool.wire.link.inbound import Inbound
from zpptool.wire.link.outbound import Envelope, Outbound
from zpptool.wire.link_errors import WireError
from zpptool.wire.local.shared_memory import SHARED_BYTES, this_host
from zpptool.wire.message.framing import CHUNK_BYTES, Buffer, Kind, Limits, Message

ENVELOPE = Envelope(Kind.TENSORS, source=0, epoch=2, sequence=5, session=77)
LARGE = 2 * CHUNK_BYTES + 12
needs_memfd = pytest.mark.skipif(this_host() is None, reason="this system has no memfd")


def pair(
    codec: WireCodec = WireCodec.NONE, *, shared: bool = False, limits: Limits | None = None
) -> tuple[Outbound, Inbound]:
    """Both halves of a session that has begun."""
    inbound = Inbound(limits or Limits(), shared=shared)
    outbound = Outbound(inbound.offers, AdaptiveCompression(codec), lambda: None, shared=shared)
    assert inbound.begin(outbound.offers) is None
    return outbound, inbound


def messages(outbound: Outbound, envelope: Envelope, header: bytes, frames: Sequence[Buffer]) -> list[Sequence[Buffer]]:
    """The ZeroMQ messages for one message."""
    first, rest, _ = outbound.encode(envelope, header, frames)
    return [first, *rest]


def wire(outbound: Outbound, frames: Sequence[Buffer], **changed: Any) -> list[list[bytes]]:
    """The ZeroMQ messages for one message, as bytes."""
    made = messages(outbound, ENVELOPE._replace(**changed), b"head", frames)
    return [[bytes(part) for part in parts] for parts in made]


def deliver(inbound: Inbound, sent: Sequence[Sequence[Buffer]]) -> Message:
    """The message that is complete with the last of them."""
    *early, last = sent
    assert [inbound.take(parts) for parts in early] == [None] * len(early)
    message = inbound.take(last)
    assert message is not None
    return message


def noise(nbytes: int) -> bytes:
    return random.Random(nbytes).randbytes(nbytes)


@cache
def bf16(count: int) -> memoryview:
    return memoryview(b"".join(struct.pack("<f", number)[2:] for number in range(count))).cast("H")


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2 * CHUNK_BYTES), max_size=3),
    st.sampled_from((WireCodec.NONE, WireCodec.ZSTD)),
    st.booleans() if this_host() else st.just(value=False),
)
def test_any_frames_arrive(sizes, codec, shared):
    frames = [noise(nbytes) for nbytes in sizes]
    outbound, inbound = pair(codec, shared=shared)
    message = deliver(inbound, wire(outbound, frames))
    assert [bytes(frame) for frame in message.frames] == frames
    assert (message.kind, message.source, message.epoch, message.sequence, message.session, message.header) == (
        Kind.TENSORS, 0, 2, 5, 77, b"head",
    )  # fmt: skip


def test_a_small_message_is_one():
    outbound, _ = pair()
    assert len(wire(outbound, [noise(1000)])) == 1
    assert len(wire(outbound, [noise(CHUNK_BYTES), noise(CHUNK_BYTES - 1)])) == 1
    assert len(wire(outbound, [noise(CHUNK_BYTES), noise(CHUNK_BYTES)])) == 3
    assert len(wire(outbound, [noise(CHUNK_BYTES + 1)])) == 3


def test_a_large_message_is_sent_in_chunks():
    outbound, _ = pair()
    assert [len(parts) for parts in wire(outbound, [noise(LARGE), b"", noise(5)])] == [1, 2, 2, 2, 2]


@needs_memfd
def test_shared_memory_leaves_only_the_ticket():
    outbound, inbound = pair(shared=True)
    assert outbound.payload_channel == "memfd"
    sent = wire(outbound, [noise(LARGE)])
    assert sum(len(part) for parts in sent for part in parts) < 100
    assert bytes(deliver(inbound, sent).frames[0]) == noise(LARGE)


@needs_memfd
def test_a_receiver_that_keeps_its_frames_gets_the_rest_by_the_socket():
    outbound, inbound = pair(shared=True)
    frame = bytes(64 << 20)
    kept = []
    while len(sent := messages(outbound, ENVELOPE, b"", [frame])) == 1:
        kept.append(deliver(inbound, sent))
    assert len(kept) == SHARED_BYTES // len(frame)
    assert len(sent) == 1 + len(frame) // CHUNK_BYTES
    assert bytes(deliver(inbound, sent).frames[0]) == frame
    del kept
    assert len(messages(outbound, ENVELOPE, b"", [frame])) == 1


def test_an_offer_of_another_host_is_not_taken():
    outbound = Outbound({"memfd": "another host"}, AdaptiveCompression(WireCodec.NONE), lambda: None)
    assert (outbound.offers, outbound.payload_channel) == ({}, "socket")


@needs_memfd
def test_a_receiver_that_cannot_map_the_segment_uses_the_socket():
    inbound = Inbound(Limits())
    outbound = Outbound(inbound.offers, AdaptiveCompression(WireCodec.NONE), lambda: None)
    pid, rest = outbound.offers["memfd"].split(":", 1)
    reason = inbound.begin({"memfd": f"{int(pid) + 4_000_000}:{rest}"})
    assert reason is not None
    assert "cannot be opened" in reason
    assert outbound.payload_channel == "socket"
    assert bytes(deliver(inbound, wire(outbound, [noise(LARGE)])).frames[0]) == noise(LARGE)


def test_activations_are_compressed_bit_for_bit():
    outbound, inbound = pair(WireCodec.ZSTD)
    frame = bf16(LARGE // 2)
    sent = wire(outbound, [frame])
    assert sum(len(part) for parts in sent for part in parts) < 0.8 * LARGE
    assert bytes(deliver(inbound, sent).frames[0]) == frame.tobytes()


def test_a_repeated_lost_or_foreign_chunk_ends_the_message():
    outbound, inbound = pair()
    sent = wire(outbound, [noise(LARGE)])
    foreign = wire(outbound, [noise(LARGE)], sequence=6)
    other_session = wire(outbound, [noise(LARGE)], session=78)
    for wrong in (
        sent[1],
        sent[3],
        foreign[2],
        other_session[2],
        [sent[2][0]],
        [*sent[2], b""],
    ):
        inbound.begin({})
        assert inbound.take(sent[0]) is None
        assert inbound.take(sent[1]) is None
        with pytest.raises(WireError):
            inbound.take(wrong)
        with pytest.raises(WireError, match="not under way"):
            inbound.take(sent[2])
    assert bytes(deliver(inbound, sent).frames[0]) == noise(LARGE)


def test_no_other_message_comes_between():
    outbound, inbound = pair()
    inbound.take(wire(outbound, [noise(LARGE)])[0])
    with pytest.raises(WireError, match="before the one under way"):
        inbound.take(wire(outbound, [b"small"], sequence=6)[0])


def test_a_link_message_may_come_between():
    outbound, inbound = pair()
    sent = wire(outbound, [noise(LARGE)])
    inbound.take(sent[0])
    message = inbound.take(wire(outbound, [], kind=Kind.LINK)[0])
    assert message is not None
    assert message.kind is Kind.LINK
    assert bytes(deliver(inbound, sent[1:]).frames[0]) == noise(LARGE)


@pytest.mark.parametrize(
    "limits", [Limits(max_frame_bytes=LARGE - 1), Limits(max_message_bytes=LARGE), Limits(max_frames=1)]
)
def test_an_announcement_is_checked_against_the_limits(limits, monkeypatch):
    outbound, inbound = pair(limits=limits)
    monkeypatch.setattr(BufferPool, "take", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(WireError, match="allowed"):
        inbound.take(wire(outbound, [noise(LARGE), b"second"])[0])


def test_a_side_channel_that_is_not_in_use_is_refused():
    outbound, inbound = pair()
    first = bytearray(wire(outbound, [noise(LARGE)])[0][0])
    first[-24] = 1
    with pytest.raises(WireError, match="by side channel 1,"):
        inbound.take([first])
    first[-23] = 1
    with pytest.raises(WireError, match="by side channel 257,"):
        inbound.take([first])
    with pytest.raises(WireError, match="table"):
        inbound.take([first[:-1]])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 3), st.integers(0, 90), st.integers(1, 255), st.sampled_from((WireCodec.NONE, WireCodec.ZSTD)))
def test_one_changed_byte_of_a_head_is_refused_or_harmless(which, at, flip, codec):
    outbound, inbound = pair(codec)
    sent = wire(outbound, [bf16(LARGE // 2)])
    head = bytearray(sent[which][0])
    head[at % len(head)] ^= flip
    sent[which][0] = bytes(head)
    try:
        taken = [inbound.take(parts) for parts in sent]
    except WireError:
        return
    assert taken[-1] is None or taken[-1].frames[0].nbytes == LARGE


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=3))
def test_no_bytes_break_the_receiver(parts):
    _, inbound = pair()
    with pytest.raises(WireError):
        inbound.take(parts)


def test_the_pool_reuses_memory_without_views():
    pool = BufferPool(keep_bytes=4 << 20)
    first = pool.take(2 << 20)
    first[:4] = b"mark"
    part = first[2:4]
    del first
    assert bytes(pool.take(2 << 20)[:4]) == bytes(4)
    assert bytes(part) == b"rk"
    del part
    assert bytes(pool.take((2 << 20) - 1)[:4]) == b"mark"


def test_the_pool_keeps_little():
    pool = BufferPool(keep_bytes=4 << 20)
    taken = [pool.take(1 << 20) for _ in range(9)]
    del taken
    pool.take(64 << 20)
    pool.take(1)
    pool.take(512 << 10)
    assert pool.idle_bytes <= 4 << 20
