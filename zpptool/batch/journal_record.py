# SPDX-License-Identifier: Apache-2.0
"""A record of the journal: what is proven about one line's result. Pure.

Records have a fixed size and a CRC each, so that a torn tail is recognised. The order of the bytes is little-endian:

    number u64 | offset u64 | custom_id 16 | body 16 | sink u8 | result's crc u32 | end u64 | tokens 2 x u32 | crc u32
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from zpptool.batch.derivation import DIGEST_BYTES, content_digest, custom_id_digest
from zpptool.batch.result_line import ERRORS, OUTPUT, Result

_FIELDS = struct.Struct(f"<QQ{DIGEST_BYTES}s{DIGEST_BYTES}sBIQII")
_CRC = struct.Struct("<I")
RECORD_BYTES = _FIELDS.size + _CRC.size
_READ_RECORDS = 4096
_MAX_TOKENS = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Record:
    """What is proven about one line.

    Attributes:
        number, offset: of the line, as in `RawLine`.
        custom_id: its digest; zeros for a line that has none.
        content: the digest of the line.
        sink: the file that has the result, `OUTPUT` or `ERRORS`.
        crc: of the result.
        end: the size of that file after the result, in bytes.
        prompt_tokens, answer_tokens: as in `Result`.
    """

    number: int
    offset: int
    custom_id: bytes
    content: bytes
    sink: int
    crc: int
    end: int
    prompt_tokens: int
    answer_tokens: int

    def encoded(self) -> bytes:
        """The record's bytes."""
        fields = _FIELDS.pack(
            self.number, self.offset, self.custom_id, self.content, self.sink, self.crc, self.end,
            min(self.prompt_tokens, _MAX_TOKENS), min(self.answer_tokens, _MAX_TOKENS),
        )  # fmt: skip
        return fields + _CRC.pack(zlib.crc32(fields))


def record_of(result: Result, end: int) -> Record:
    """The record of a result.

    Args:
        result: the result.
        end: the size of its file after it, in bytes.
    """
    line = result.line
    return Record(
        line.number,
        line.offset,
        custom_id_digest(line.custom_id) if line.custom_id is not None else bytes(DIGEST_BYTES),
        content_digest(line.content),
        result.sink,
        zlib.crc32(result.content),
        end,
        result.prompt_tokens,
        result.answer_tokens,
    )


def proven(stream: BinaryIO) -> Iterator[Record]:
    """The records at the beginning of a file, up to the first that is torn or damaged.

    A record also has to continue those before it: the file of its result never shrinks.
    """
    ends = {OUTPUT: 0, ERRORS: 0}
    while block := stream.read(_READ_RECORDS * RECORD_BYTES):
        for start in range(0, len(block) - RECORD_BYTES + 1, RECORD_BYTES):
            fields = block[start : start + _FIELDS.size]
            (crc,) = _CRC.unpack_from(block, start + _FIELDS.size)
            record = Record(*_FIELDS.unpack(fields))
            if zlib.crc32(fields) != crc or record.end <= ends.get(record.sink, record.end):
                return
            ends[record.sink] = record.end
            yield record
        if len(block) % RECORD_BYTES:
            return
