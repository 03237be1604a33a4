# SPDX-License-Identifier: Apache-2.0
"""Finds two lines with the same `custom_id` among any number of lines, in constant memory.

Digests are distributed over buckets by their first byte; a bucket that is full is appended to its file. Afterwards each
bucket is searched by itself: of ten million lines it holds forty thousand.
"""

from __future__ import annotations

import struct
from pathlib import Path

from zpptool.batch.derivation import DIGEST_BYTES, custom_id_digest

BUCKETS = 256
BUFFER_BYTES = 64 << 10
_ENTRY = struct.Struct(f"<{DIGEST_BYTES}sQ")


class DuplicateSearch:
    """The search in one input.

    Args:
        directory: for the buckets' files; it has to exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buffers = [bytearray() for _ in range(BUCKETS)]

    def add(self, custom_id: str, number: int) -> None:
        """Add the `custom_id` of the line with that number.

        Raises:
            OSError: a bucket's file cannot be written.
        """
        digest = custom_id_digest(custom_id)
        buffer = self._buffers[digest[0]]
        buffer += _ENTRY.pack(digest, number)
        if len(buffer) >= BUFFER_BYTES:
            with self._file(digest[0]).open("ab") as stream:
                stream.write(buffer)
            buffer.clear()

    def first(self) -> tuple[int, int] | None:
        """The numbers of two lines with the same `custom_id`, the lower one first: those whose second line comes first
        in the input; None if there are none. The buckets' files are removed.

        Raises:
            OSError: a bucket's file cannot be read.
        """
        found: tuple[int, int] | None = None
        for bucket in range(BUCKETS):
            pair = self._first_of_bucket(bucket)
            if pair is not None and (found is None or pair[1] < found[1]):
                found = pair
        return found

    def _first_of_bucket(self, bucket: int) -> tuple[int, int] | None:
        file = self._file(bucket)
        stored = file.read_bytes() if file.exists() else b""
        lines: dict[bytes, int] = {}
        found: tuple[int, int] | None = None
        for digest, number in _ENTRY.iter_unpack(stored + bytes(self._buffers[bucket])):
            before = lines.setdefault(digest, number)
            if before != number and found is None:
                found = before, number
        file.unlink(missing_ok=True)
        return found

    def _file(self, bucket: int) -> Path:
        return self._directory / f"duplicates-{bucket:02x}"
