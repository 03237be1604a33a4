# SPDX-License-Identifier: Apache-2.0
"""The lines of a batch's input: of one file or several, plain or compressed with gzip or zstd, in constant memory."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import zstandard
from blake3 import blake3

from zpptool.batch.duplicates import DuplicateSearch
from zpptool.batch.request_line import MAX_LINE_BYTES, RawLine, custom_id_of
from zpptool.errors import ZppError, invalid_error
from zpptool.regular_file import open_regular

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 20
_PACKED_BYTES = 64 << 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REPORT_EVERY = 4096


@dataclass(frozen=True)
class InputFacts:
    """What is known about an input once it has been read.

    Attributes:
        digest: of its content, decompressed.
        lines: how many lines it has, empty ones not counted.
        nbytes: how many bytes it has, decompressed.
    """

    digest: str
    lines: int
    nbytes: int


class InputLines:
    """The lines of these files, one file after the other.

    Args:
        paths: the files.
        names: what they are called in messages; one for each.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self._paths, self._names = tuple(paths), tuple(names)

    def __iter__(self) -> Iterator[RawLine]:
        """Read all lines. Raises `ZppError` (INVALID): a file cannot be read, or its compression is damaged."""
        return self._read(lambda _chunk: None)

    def check(self, scratch: Path, on_lines: Callable[[int], None] = lambda _count: None) -> InputFacts:
        """Read all lines once, and refuse an input that names two requests alike.

        Args:
            scratch: an existing directory for the files of the search.
            on_lines: called now and then with the number of lines read.

        Raises:
            ZppError: (INVALID) two lines have the same `custom_id`, or a file cannot be read; OSError: the scratch
                directory cannot be written.
        """
        search, digest = DuplicateSearch(scratch), blake3()
        nbytes = count = 0

        def see(chunk: bytes) -> None:
            nonlocal nbytes
            nbytes += len(chunk)
            digest.update(chunk)

        for line in self._read(see):
            count = line.number
            custom_id = custom_id_of(line.content)
            if custom_id is not None:
                search.add(custom_id, line.number)
            if count % _REPORT_EVERY == 0:
                on_lines(count)
        pair = search.first()
        if pair is not None:
            raise self._same_custom_id(*pair)
        return InputFacts(digest.hexdigest(), count, nbytes)

    def _read(self, see: Callable[[bytes], None]) -> Iterator[RawLine]:
        """All lines; `see` is called with every chunk of the content, whose lengths add up to the size."""
        number = offset = 0
        for path, name in zip(self._paths, self._names, strict=True):
            with _opened(path, name) as stream:
                for local, (content, nbytes) in enumerate(_lines(stream, see), 1):
                    if content is None or content.strip():
                        number += 1
                        yield RawLine(number, offset, f"{name}, line {local}", content)
                    offset += nbytes

    def _same_custom_id(self, first: int, second: int) -> ZppError:
        found = {line.number: line for line in self if line.number in (first, second)}
        custom_id = custom_id_of(found[first].content)
        return invalid_error(
            f"{found[first].place} and {found[second].place} have the same custom_id {custom_id!r}",
            "Give every line a custom_id of its own: results are found by it.",
        )


def _lines(stream: io.BufferedIOBase, see: Callable[[bytes], None]) -> Iterator[tuple[bytes | None, int]]:
    """Each line without its end, None for one that is too long, and its length with its end."""
    is_first = True
    while line := stream.readline(MAX_LINE_BYTES + 2):
        see(line)
        nbytes, content = len(line), line.rstrip(b"\r\n")
        if is_first:
            content, is_first = content.removeprefix(_BYTE_ORDER_MARK), False
        too_long = len(content) > MAX_LINE_BYTES
        while not line.endswith(b"\n") and (line := stream.readline(_BUFFER_BYTES)):
            see(line)
            nbytes += len(line)
            too_long = True
        yield None if too_long else content, nbytes


@contextmanager
def _opened(path: Path, name: str) -> Iterator[io.BufferedIOBase]:
    """A file, decompressed if its first bytes are those of gzip or zstd."""
    try:
        with open_regular(path) as raw:
            magic = raw.read(4)
            raw.seek(0)
            plain = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES)
            if magic.startswith(GZIP_MAGIC):
                yield gzip.GzipFile(fileobj=plain)
            elif magic.startswith(ZSTD_MAGIC):
                yield io.BufferedReader(_Zstd(plain), _BUFFER_BYTES)
            else:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as cause:
        raise invalid_error(f"{name} is damaged or cut off: {cause}", "Get the file again.") from cause
    except OSError as cause:
        raise invalid_error(f"{name} cannot be read: {cause.strerror or cause}") from cause


class _Zstd(io.RawIOBase):
    """The decompressed content of zstd frames. zstandard's own reader takes a frame that is cut off for a whole one.

    Args:
        source: the compressed file.
    """

    def __init__(self, source: io.BufferedIOBase) -> None:
        self._source = source
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_begun = False
        self._left = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes, 0 at the end. Raises EOFError: the last frame is cut off."""
        while not self._left:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._source.read(_PACKED_BYTES)
            if not packed:
                if self._is_begun and not self._frame.eof:
                    raise EOFError("the last zstd frame ends early")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._left = self._frame.decompress(packed)
            self._is_begun = True
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
