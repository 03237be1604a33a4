# SPDX-License-Identifier: Apache-2.0
"""A chunk comes out of the codec bit for bit, a forged one takes no memory, and compressing is chosen where it pays."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.compression.adaptive import (
    BURST_BYTES,
    SHRINK_FROM_BYTES,
    AdaptiveCompression,
    Speeds,
    WireCodec,
    worth_it,
)
from zpptool.wire.compression.bandwidth import Rate, updated_speed
from zpptool.wire.compression.byte_planes import WIDTHS, expand, shrink
from zpptool.wire.link_errors import WireError

MIB = 1 << 20
THIN, FAST = 25e6, 1.2e9  # 200 Mbit/s, 10 Gbit/s
MEASURED = Speeds(THIN, shrink=380e6, ratio=1.45)  # of this codec on bf16 hidden states


def like_bf16(count: int) -> bytes:
    """Little-endian elements of two bytes: a mantissa without order, a sign and exponent of few values."""
    source = random.Random(7)
    return b"".join(
        bytes((source.randrange(256), source.choice((0x3F, 0xBF)) - source.randrange(3))) for _ in range(count)
    )


@given(st.sampled_from(WIDTHS), st.integers(1, 200), st.integers(0, 255), st.integers(0, 999))
def test_every_byte_is_restored(width, count, often, seed):
    source = random.Random(seed)
    data = bytes(source.choice((often, source.randrange(256))) for _ in range(width * count))
    packed = shrink(data, width)
    if packed is not None:
        into = bytearray(len(data))
        expand(packed, width, memoryview(into))
        assert into == data


@pytest.mark.parametrize("width", WIDTHS)
def test_what_repeats_shrinks_and_returns(width):
    data = bytes(range(16)) * 4096
    packed = shrink(memoryview(data), width)
    assert packed is not None
    assert len(packed) < len(data) / 20
    into = bytearray(len(data))
    expand(packed, width, memoryview(into))
    assert into == data


def test_planes_find_what_bytes_in_a_row_hide():
    data = like_bf16(1 << 16)
    packed = shrink(data, 2)
    assert packed is not None
    assert len(data) / len(packed) > 1.3
    alone = shrink(data, 1)
    assert alone is None or len(alone) > len(packed)


def test_noise_is_left_as_it_is():
    assert shrink(random.Random(1).randbytes(MIB), 2) is None


def stored(*planes: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(plane)) + plane for plane in planes)


def test_a_bomb_is_refused_by_what_it_declares():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    with pytest.raises(WireError, match="does not hold"):
        expand(stored(bomb), 1, memoryview(bytearray(MIB)))


def test_a_frame_that_declares_no_size_is_refused():
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64))
    with pytest.raises(WireError, match="does not hold"):
        expand(stored(silent), 1, memoryview(bytearray(64)))


@pytest.mark.parametrize(
    ("packed", "width", "length", "match"),
    [
        (b"", 1, 8, "too early"),
        (b"\xff\xff\xff\xff12", 1, 8, "too early"),
        (stored(b"12345678") + b"x", 1, 8, "follow"),
        (stored(b"1234567"), 1, 8, "cannot be read|does not hold"),
        (stored(b"1234"), 2, 8, "too early"),
        (stored(b"12345678"), 3, 8, "elements of 3"),
        (stored(b"1234", b"1234"), 2, 7, "elements of 2"),
    ],
)
def test_forged_chunks_are_refused(packed, width, length, match):
    with pytest.raises(WireError, match=match):
        expand(packed, width, memoryview(bytearray(length)))


@given(st.binary(max_size=200), st.sampled_from(WIDTHS))
def test_no_bytes_break_the_decoder(packed, width):
    with contextlib.suppress(WireError):
        expand(packed, width, memoryview(bytearray(64)))


def test_a_thin_link_compresses_and_a_fast_one_does_not():
    assert worth_it(MIB, MEASURED)
    assert worth_it(64 * MIB, MEASURED)
    assert not worth_it(64 * MIB, MEASURED._replace(link=FAST))
    assert not worth_it(64 * MIB, MEASURED._replace(link=None))
    assert not worth_it(SHRINK_FROM_BYTES - 1, MEASURED)


def test_what_does_not_shrink_is_sent_as_it_is():
    assert not worth_it(64 * MIB, MEASURED._replace(ratio=1.05))


def test_a_slow_processor_does_not_compress():
    assert not worth_it(MIB, MEASURED._replace(shrink=30e6))


def test_compressing_overlaps_with_sending_in_large_messages_only():
    speeds = Speeds(link=125e6, shrink=380e6, ratio=1.45)
    assert worth_it(64 * MIB, speeds)
    assert not worth_it(MIB, speeds)


@given(st.integers(0, 1 << 32), st.floats(1e5, 1e11), st.floats(1e6, 1e10), st.floats(1, 100), st.floats(1, 10))
def test_a_faster_link_never_compresses_more(nbytes, link, shrink_speed, ratio, faster):
    slow = Speeds(link, shrink_speed, ratio)
    if not worth_it(nbytes, slow):
        assert not worth_it(nbytes, slow._replace(link=link * faster))


def test_auto_tries_once_and_goes_by_what_it_saw():
    compression = AdaptiveCompression(WireCodec.AUTO)
    thin = Rate(THIN, at_least=False)
    assert compression.decide(MIB, lambda: thin)
    compression.record(MIB, MIB, 0.002)  # noise
    assert not compression.decide(MIB, lambda: thin)
    tries = sum(compression.decide(MIB, lambda: thin) for _ in range(640))
    assert tries == 10
    for _ in range(30):
        compression.record(MIB, MIB // 2, 0.002)
    assert compression.decide(MIB, lambda: thin)


def test_the_other_codecs_ask_no_link():
    def never() -> Rate:
        raise AssertionError

    assert not AdaptiveCompression(WireCodec.NONE).decide(64 * MIB, never)
    assert AdaptiveCompression(WireCodec.ZSTD).decide(64 * MIB, never)
    assert not AdaptiveCompression(WireCodec.ZSTD).decide(SHRINK_FROM_BYTES - 1, never)


def test_an_idle_connection_does_not_look_slow():
    assert updated_speed(None, Rate(1e6, at_least=True)) is None
    assert updated_speed(None, Rate(1e6, at_least=True), bursts=True) == 1e6
    assert updated_speed(None, Rate(1e6, at_least=False)) == 1e6
    assert updated_speed(2e6, Rate(1e6, at_least=True)) == 2e6
    assert updated_speed(1e6, Rate(9e8, at_least=True)) == 9e8
    assert updated_speed(1e6, Rate(9e8, at_least=False)) == 9e8
    assert updated_speed(1e9, Rate(1e8, at_least=False)) == pytest.approx(6.4e8)
    assert updated_speed(1e6, None) is None


def test_a_link_that_only_began_fast_is_soon_known():
    compression = AdaptiveCompression(WireCodec.AUTO)
    assert not any(compression.decide(BURST_BYTES, lambda: Rate(1e9, at_least=False)) for _ in range(100))
    decisions = [compression.decide(2 * MIB, lambda: Rate(25e6, at_least=False)) for _ in range(12)]
    assert any(decisions)


def test_auto_takes_what_large_messages_have_shown_though_they_did_not_fill_the_link_for_long():
    compression, seen = AdaptiveCompression(WireCodec.AUTO), lambda: Rate(THIN, at_least=True)
    assert not compression.decide(BURST_BYTES - 1, seen)
    assert not compression.decide(BURST_BYTES, seen)  # the next one knows
    assert compression.decide(BURST_BYTES, seen)
    assert not AdaptiveCompression(WireCodec.AUTO).decide(BURST_BYTES, seen)
