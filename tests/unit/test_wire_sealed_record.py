# SPDX-License-Identifier: Apache-2.0
"""A sealed record can be opened once, in its place, by the key of its lane, and not when a bit of it was changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.link_errors import WireError
from zpptool.wire.sealed.offer import SealedOffer, decode_offer, encode_offer
from zpptool.wire.sealed.record import HEADER_BYTES, PIECE_BYTES, TAG_BYTES, Opener, Piece, Sealer, decode_header
from zpptool.wire.sealed.session_keys import lane_key, lane_proof, new_secret

SECRET = bytes(range(32))


def sealed(number: int = 0, data: bytes = b"activations") -> bytes:
    """The record of that number, which carries the data."""
    sealer = Sealer(lane_key(SECRET, 0))
    records = [bytes(sealer.seal(Piece(7, 0, len(data)), memoryview(data))) for _ in range(number + 1)]
    return records[-1]


def opened(record: bytes, opener: Opener) -> bytes:
    piece = decode_header(record[:HEADER_BYTES])
    into = bytearray(piece.nbytes)
    opener.open(record[:HEADER_BYTES], memoryview(record)[HEADER_BYTES:], memoryview(into))
    return bytes(into)


@given(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=5), st.integers(0, 2**64 - 1))
def test_records_are_opened_in_order(pieces: list[bytes], ticket: int) -> None:
    sealer, opener = Sealer(lane_key(SECRET, 1)), Opener(lane_key(SECRET, 1))
    for data in pieces:
        record = bytes(sealer.seal(Piece(ticket, 3, len(data)), memoryview(data)))
        assert decode_header(record[:HEADER_BYTES]) == (ticket, 3, len(data))
        assert opened(record, opener) == data
        assert len(record) == HEADER_BYTES + len(data) + TAG_BYTES


@given(st.integers(0, 8 * len(sealed()) - 1))
def test_a_record_with_a_bit_changed_is_not_opened(bit: int) -> None:
    record = bytearray(sealed())
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises((WireError, ValueError)):
        opened(bytes(record), Opener(lane_key(SECRET, 0)))


def test_a_record_is_opened_once_and_in_its_place_only() -> None:
    opener = Opener(lane_key(SECRET, 0))
    with pytest.raises(WireError, match="sealed record 0 is not authentic"):
        opened(sealed(1), opener)
    assert opened(sealed(0), opener) == b"activations"
    with pytest.raises(WireError, match="sealed record 1 is not authentic"):
        opened(sealed(0), opener)


def test_lanes_sessions_and_purposes_have_keys_of_their_own() -> None:
    other = new_secret()
    keys = {use(secret, lane) for use in (lane_key, lane_proof) for secret in (SECRET, other) for lane in range(4)}
    assert len(keys) == 16
    assert {len(key) for key in keys} == {32}


def test_no_record_is_longer_than_a_piece_may_be() -> None:
    for nbytes in (0, PIECE_BYTES + 1, 2**32 - 1):
        with pytest.raises(WireError, match="a sealed record of"):
            decode_header(bytes(16) + nbytes.to_bytes(4, "little"))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"port": 1, "secret": "AA=="}', encode_offer(SealedOffer(0, SECRET)), "[1, 2]"]
)
def test_an_offer_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="an offer of the sealed channel"):
        decode_offer(text)


def test_an_offer_does_not_show_its_secret() -> None:
    offer = SealedOffer(5, SECRET)
    assert decode_offer(encode_offer(offer)) == offer
    assert "secret" not in repr(offer)
