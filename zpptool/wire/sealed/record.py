# SPDX-License-Identifier: Apache-2.0
"""One record of a lane: a piece of a frame, sealed with AES-256-GCM.

A record is a header of 20 bytes, which is authenticated but not encrypted, the sealed piece, and a tag of 16 bytes. The
nonce is the number of the record on its lane, which is not sent: a record that is lost, repeated or moved cannot be
opened.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zpptool.wire.link_errors import WireError

# ticket, offset in the frame, bytes; little-endian
_HEADER = struct.Struct("<QQI")
HEADER_BYTES = _HEADER.size
TAG_BYTES = 16
PIECE_BYTES = 1 << 20
"""The most that one record carries."""
_NONCE_BYTES = 12
ACCEPTED_TICKET = 0
"""Of the first record of every lane, one byte by which the sender accepts the lane and proves itself."""


class Piece(NamedTuple):
    """Which bytes a record carries.

    Attributes:
        ticket: of the frame.
        offset: of the piece in the frame.
        nbytes: of the piece.
    """

    ticket: int
    offset: int
    nbytes: int


def decode_header(header: bytes | bytearray | memoryview) -> Piece:
    """The piece that a record's header announces.

    Raises:
        WireError: it is longer than a record may be.
    """
    piece = Piece(*_HEADER.unpack(header))
    if not 1 <= piece.nbytes <= PIECE_BYTES:
        raise WireError(f"a sealed record of {piece.nbytes} bytes.")
    return piece


class Sealer:
    """Seals the records of one lane, in order.

    Args:
        key: of the lane; no other object may seal with it.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._buffer = memoryview(bytearray(HEADER_BYTES + PIECE_BYTES + TAG_BYTES))
        self._number = 0

    def seal(self, piece: Piece, data: memoryview) -> memoryview:
        """The next record, in a buffer that the next call writes again.

        Args:
            piece: which bytes they are.
            data: the bytes.
        """
        header = _HEADER.pack(*piece)
        end = HEADER_BYTES + piece.nbytes + TAG_BYTES
        self._buffer[:HEADER_BYTES] = header
        self._cipher.encrypt_into(_nonce(self._number), data, header, self._buffer[HEADER_BYTES:end])
        self._number += 1
        return self._buffer[:end]


class Opener:
    """Opens the records of one lane, in order; see `Sealer`.

    Attributes:
        number: of the next record.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.number = 0

    def open(self, header: bytes | bytearray | memoryview, sealed: memoryview, into: memoryview) -> None:
        """Open the next record into the memory of its frame.

        Args:
            header: the record's header.
            sealed: the sealed piece and its tag.
            into: as many bytes as the piece has. What is there after an error is arbitrary.

        Raises:
            WireError: it is not the record that was sealed as the next one.
        """
        try:
            self._cipher.decrypt_into(_nonce(self.number), sealed, bytes(header), into)
        except InvalidTag as cause:
            raise WireError(f"sealed record {self.number} is not authentic.") from cause
        self.number += 1


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "little")
