# SPDX-License-Identifier: Apache-2.0
"""A message survives the wire unchanged, and bytes that are no message are refused by name."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.errors import ExitCode
from zpptool.places import HEAD, place_name
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import (
    INLINE_BELOW_BYTES,
    PREAMBLE_BYTES,
    Kind,
    Limits,
    check_sizes,
    decode,
    encode,
)

LIMITS = Limits()
NUMBERS = {"source": 3, "epoch": 7, "sequence": 11, "session": 13}


def wire(header: bytes = b"header", frames: list[bytes] | None = None) -> list[bytes]:
    """A sound message as bytes."""
    parts = encode(Kind.TENSORS, header, [b"one", b"two"] if frames is None else frames, **NUMBERS)
    return [bytes(part) for part in parts]


@given(
    kind=st.sampled_from(Kind),
    header=st.binary(max_size=300),
    frames=st.lists(st.binary(max_size=300), max_size=5),
    source=st.integers(HEAD, 2**15 - 1),
    epoch=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    session=st.integers(0, 2**32 - 1),
)
def test_what_is_encoded_is_decoded(kind, header, frames, source, epoch, sequence, session):
    parts = encode(kind, header, frames, source=source, epoch=epoch, sequence=sequence, session=session)
    message = decode(parts, LIMITS)
    assert (message.kind, message.header, [bytes(frame) for frame in message.frames]) == (kind, header, frames)
    assert (message.source, message.epoch, message.sequence, message.session) == (source, epoch, sequence, session)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [([], 1), ([INLINE_BELOW_BYTES - 7], 1), ([INLINE_BELOW_BYTES - 6], 2), ([0], 1), ([1, 1], 3)],
)
def test_one_small_payload_shares_the_first_frame(sizes, parts):
    encoded = wire(frames=[b"x" * size for size in sizes])
    assert len(encoded) == parts
    assert [frame.nbytes for frame in decode(encoded, LIMITS).frames] == sizes


def test_large_frames_are_not_copied():
    payload = bytearray(INLINE_BELOW_BYTES)
    message = decode(encode(Kind.TENSORS, b"", [payload], **NUMBERS), LIMITS)
    payload[5] = 99
    assert message.frames[0][5] == 99


def field(offset: int, layout: str, value: int) -> list[bytes]:
    """A sound message with one number of its preamble replaced."""
    first = bytearray(wire()[0])
    struct.pack_into(layout, first, offset, value)
    return [bytes(first), *wire()[1:]]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], "no frames"),
        ([b"short"], "5 bytes"),
        ([b"GET / HTTP/1.1\r\nHost: stage.example\r\n"], "another protocol"),
        (field(4, "<B", 9), "version 9"),
        (field(5, "<B", 77), "kind 77"),
        (field(6, "<H", 3), "flags 0x0003"),
        (field(6, "<H", 1), "3 frames came, 2 were announced"),
        (field(12, "<h", -2), "source -2"),
        (field(14, "<H", 3), "2 frames came, 3 were announced"),
        (field(20, "<I", 2**32 - 1), "4294967295 were announced"),
        (wire()[:-1], "1 frames came"),
        ([*wire(), b""], "3 frames came"),
        ([wire()[0] + b"x", *wire()[1:]], "header of 7 bytes came, 6 were announced"),
        ([wire(frames=[b"small"])[0][:-5] + b"", b"small"], "2 frames came, 1 were announced"),
    ],
)
def test_what_is_wrong_is_named(parts, expected):
    with pytest.raises(WireError, match=expected) as caught:
        decode(parts, LIMITS)
    assert caught.value.exit_code is ExitCode.STAGE


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (replace(LIMITS, max_frames=1), "2 frames"),
        (replace(LIMITS, max_header_bytes=5), "header of 6 bytes"),
        (replace(LIMITS, max_frame_bytes=2), "frame 0 has 3 bytes"),
        (replace(LIMITS, max_message_bytes=PREAMBLE_BYTES + 11), "message of 44 bytes"),
    ],
)
def test_every_limit_holds_on_both_ends(limits, expected):
    with pytest.raises(WireError, match=expected):
        decode(wire(), limits)
    with pytest.raises(WireError, match=expected):
        check_sizes(6, [3, 3], limits)


@pytest.mark.parametrize("wrong", [{"source": 2**15}, {"epoch": 2**32}, {"sequence": -1}, {"session": 2**32}])
def test_numbers_that_do_not_fit_are_refused(wrong):
    with pytest.raises(WireError, match="does not fit the preamble"):
        encode(Kind.CONTROL, b"", [], **(NUMBERS | wrong))


@settings(max_examples=500)
@given(parts=st.lists(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"ZPPW\x03" + tail), max_size=4))
def test_arbitrary_bytes_raise_nothing_but_wire_error(parts):
    with suppress(WireError):
        decode(parts, LIMITS)


@settings(max_examples=500)
@given(data=st.data())
def test_a_mutated_message_is_read_or_refused_without_taking_memory(data):
    parts = [bytearray(part) for part in wire(frames=data.draw(st.sampled_from([[], [b"a"], [b"ab", b"c"]])))]
    for _ in range(data.draw(st.integers(1, 6))):
        part = data.draw(st.sampled_from(parts))
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        message = decode(parts, LIMITS)
        assert sum(frame.nbytes for frame in message.frames) <= sum(map(len, parts))
    except WireError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000


def test_places_have_names():
    assert (place_name(HEAD), place_name(0), place_name(12)) == ("head", "stage 0", "stage 12")
