# SPDX-License-Identifier: Apache-2.0
"""Open and read only what is a regular file, and only up to a limit.

A FIFO in the place of a config or a key file would be waited for, a device read without end, and a huge file read into
memory. All three are refused at once, by name.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from zpptool.errors import ZppError, invalid_error

_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}  # fmt: skip


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    Raises:
        ZppError: (INVALID) it is no regular file, or `path` is none that a file can have; OSError: it cannot be opened.
    """
    try:
        _refuse_special(path, os.stat(path))  # before it is opened, for opening a device can have an effect
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as cause:  # a NUL, or what the file system's encoding does not have
        raise invalid_error(f"{str(path)!r} is not the path of a file") from cause
    try:
        _refuse_special(path, os.fstat(handle))
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: in bytes; the file is not read on past it.
        what: it should be, for messages: "plan".

    Raises:
        ZppError: (INVALID) it is no regular file, or longer than `limit`; OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        return read_up_to(stream, limit, path, what)


def read_up_to(stream: BinaryIO, limit: int, path: Path, what: str) -> bytes:
    """The rest of an open file; raises ZppError (INVALID) if that is more than `limit` bytes, and OSError."""
    pieces, left = [], limit
    while piece := stream.read(min(left + 1, 1 << 20)):
        left -= len(piece)
        if left < 0:
            raise _too_large(path, what)
        pieces.append(piece)
    return b"".join(pieces)


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise invalid_error(
            f"{path} is {kind}, not a regular file", "Name a file, or copy what comes from it into one."
        )


def _too_large(path: Path, what: str) -> ZppError:
    return invalid_error(f"{path} is larger than any {what}")
