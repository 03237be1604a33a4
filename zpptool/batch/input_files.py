# SPDX-License-Identifier: Apache-2.0
"""Where a batch's input comes from: a file, a pattern of files, standard input, or a URL.

Standard input and URLs are copied beside the journal first: they could not be read again when the run is continued.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import httpx

from zpptool.batch.file_operations import FileOperations, append_all
from zpptool.batch.journal import INPUT_NAME, write_error
from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.net.addresses import without_credentials

STANDARD_INPUT = "-"
URL_PREFIXES = ("http://", "https://")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0


class Readable(Protocol):
    """What can be read to its end."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


@dataclass(frozen=True)
class BatchInput:
    """The files that an input was found to be.

    Attributes:
        paths: the files.
        names: what they are called in messages; one for each.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]


def is_spooled(text: str) -> bool:
    """Whether an input is copied beside the journal."""
    return text == STANDARD_INPUT or text.startswith(URL_PREFIXES)


def shown_input(text: str) -> str:
    """What an input is called in messages: a URL without credentials and query, which may hold a signature."""
    return "standard input" if text == STANDARD_INPUT else without_credentials(text).partition("?")[0]


def files_of(text: str) -> BatchInput:
    """The file that is named, or the files that match a pattern, in the order of their names.

    Raises:
        ZppError: (USAGE) there is none.
    """
    named = Path(text)
    if named.exists():
        return BatchInput((named,), (text,))
    found = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []
    if not found:
        raise usage_error(f"{text}: no such file", "Name a file, a pattern in quotes, a URL, or - for standard input.")
    return BatchInput(tuple(map(Path, found)), tuple(found))


def spooled(text: str, directory: Path, files: FileOperations, stdin: IO[bytes] | None = None) -> BatchInput:
    """The copy of standard input or of a URL; it is made if there is none.

    A copy that there is counts: when a run is continued, a URL is not requested again, and standard input may be a
    terminal or empty. If standard input has something, it has to be what was copied.

    Args:
        text: `-` or a URL.
        directory: of the journal; it has to exist.
        files: the file operations.
        stdin: standard input; None for that of this process.

    Raises:
        ZppError: (INVALID) standard input has something else than before; (FAILURE) the URL cannot be read, or the copy
            cannot be written.
    """
    copy = directory / INPUT_NAME
    name = shown_input(text)
    if text == STANDARD_INPUT:
        source = stdin or sys.stdin.buffer
        if not copy.exists():
            _copy(source, copy, files)
        elif not source.isatty():
            _refuse_other(source, copy)
    elif not copy.exists():
        with _requested(text) as response:
            _copy(response, copy, files)
    return BatchInput((copy,), (name,))


def _copy(source: Readable, target: Path, files: FileOperations) -> None:
    """Copy all of a source; the copy is there whole or not at all."""
    written = target.with_name(f"{target.name}.new")
    try:
        with ExitStack() as stack:
            descriptor = files.open(written)
            stack.callback(files.close, descriptor)
            files.truncate(descriptor, 0)
            while chunk := source.read(_CHUNK_BYTES):
                append_all(files, descriptor, chunk)
            files.sync(descriptor)
        files.replace(written, target)
        files.sync_directory(target.parent)
    except OSError as cause:
        raise write_error(target, cause) from cause


def _refuse_other(source: Readable, copy: Path) -> None:
    """Refuse standard input that is neither empty nor the same as the copy."""
    with copy.open("rb") as stream:
        chunk = source.read(_CHUNK_BYTES)
        if not chunk:
            return
        while chunk:
            if stream.read(len(chunk)) != chunk:
                break
            chunk = source.read(_CHUNK_BYTES)
        if chunk or stream.read(1):
            raise invalid_error(
                "standard input is not what this run was begun with",
                "Pipe the same again or nothing (< /dev/null), choose another output, or use --restart to begin anew.",
            )


class _Body:
    """The body of a response, as something that can be read."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.iter_bytes(_CHUNK_BYTES)

    def read(self, _size: int, /) -> bytes:
        return next(self._chunks, b"")


@contextmanager
def _requested(url: str) -> Iterator[Readable]:
    """The content of a URL.

    Raises:
        ZppError: (FAILURE) it cannot be read.
    """
    shown = shown_input(url)
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            if response.status_code != httpx.codes.OK:
                raise ZppError(f"{shown} answers with {response.status_code}", "Check the URL.")
            yield _Body(response)
    except (httpx.HTTPError, httpx.InvalidURL) as cause:
        raise ZppError(f"{shown} cannot be read: {type(cause).__name__}", "Check the URL, and run it again.") from cause
