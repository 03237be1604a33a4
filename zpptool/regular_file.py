# SPDX-License-Identifier: Apache-2.0
"""Open and read regular files only, up to a size limit.

In place of a config or a key file, opening a FIFO would block, reading a device might never end, and a huge file would
fill the memory. All three are refused immediately, with the path in the message.
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
        ZppError: (INVALID) it is not a regular file, or `path` is not a valid path; OSError: it cannot be opened.
    """
    try:
        _refuse_special(path, os.stat(path))  # check before opening: opening a device can have side effects
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as cause:  # a NUL, or a character outside the file system's encoding
        raise invalid_error(f"{str(path)!r} is not a valid path") from cause
    try:
        _refuse_special(path, os.fstat(handle))
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        limit: maximum length in bytes.
        what: the kind of file, for messages, for example "plan".

    Raises:
        ZppError: (INVALID) it is not a regular file, or longer than `limit`; OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        return read_up_to(stream, limit, path, what)


def read_up_to(stream: BinaryIO, limit: int, path: Path, what: str) -> bytes:
    """Read the rest of an open file.

    Args:
        stream: the file, opened for binary reading.
        limit: maximum number of bytes to read.
        path: its path, for messages.
        what: the kind of file, for messages.

    Raises:
        ZppError: (INVALID) there are more than `limit` bytes; OSError: it cannot be read.
    """
    pieces, left = [], limit
    while piece := stream.read(min(left + 1, 1 << 20)):
        left -= len(piece)
        if left < 0:
            raise _too_large(path, what)
        pieces.append(piece)
    return b"".join(pieces)


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "special")
        raise invalid_error(f"{path} is {kind}, not a regular file", "Name a regular file.")


def _too_large(path: Path, what: str) -> ZppError:
    return invalid_error(f"{path} is larger than any {what}", "Check that it is the right file.")
