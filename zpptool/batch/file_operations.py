# SPDX-License-Identifier: Apache-2.0
"""Every operation by which a batch changes a file system, so that tests can have each of them fail, or be the last."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class FileOperations:
    """The operations of this system. All of them raise OSError."""

    def open(self, path: Path) -> int:
        """Open a file for reading and appending; create it if there is none."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        """Append bytes; return how many were written."""
        return os.write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        """Return once the content of a file is on the device."""
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to so many bytes."""
        os.ftruncate(descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file."""
        source.replace(target)

    def sync_directory(self, path: Path) -> None:
        """Return once the names in a directory are on the device; a file system that cannot do so is accepted."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as cause:
            if cause.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)


def append_all(files: FileOperations, descriptor: int, content: bytes) -> None:
    """Append all of some bytes, also where one write takes a part of them.

    Raises:
        OSError: they could not be written; a part of them may have been.
    """
    left = memoryview(content)
    while left:
        written = files.write(descriptor, left)
        if written <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left = left[written:]
