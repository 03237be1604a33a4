# SPDX-License-Identifier: Apache-2.0
"""Locks on an output directory: exclusive for a run that writes all of it, shared for runs that each write one stage.

A lock is flock(2) on a file, which the kernel releases when its process ends. Some NFS, Lustre, CIFS and FUSE mounts do
not support it. There the content of the file stands for the lock: it names the host and the process that hold it. The
file of a process of this host that has ended is removed; whether a process of another host still runs cannot be known,
so the error names the file.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zpptool.checkpoint.digest import digest_bytes

_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY}
_HELD = {errno.EWOULDBLOCK, errno.EACCES}
"""EACCES is how NFS and CIFS may report a lock that another host holds."""


class Held(Exception):
    """Another run holds the lock.

    Attributes:
        marker: the file whose content stands for the lock, or the file that may be left from a killed run on a file
            system without flock; None if the kernel holds the lock.
    """

    def __init__(self, marker: Path | None) -> None:
        super().__init__(marker)
        self.marker = marker


@contextmanager
def hold(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock for the duration of the block, without waiting for it. The file is removed with the last holder.

    Args:
        path: the lock file; its directory has to exist.
        shared: several runs may hold the lock at once, but none beside an exclusive one.

    Raises:
        Held: another run holds it.
        OSError: the file cannot be created.
    """
    descriptor = _flock(path, shared=shared)
    mark = _place_marker(path, shared=shared) if descriptor is None else None
    try:
        yield
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while others share the lock
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _flock(path: Path, *, shared: bool) -> int | None:
    """Lock a file, and return its descriptor; None if the file system has no flock."""
    while True:
        descriptor, created = _open(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            _refuse_marker(path)
            if not shared:
                _refuse_shared_markers(path)
            if _is_file_at(path, descriptor):
                return descriptor
        except OSError as cause:
            os.close(descriptor)
            if cause.errno in _HELD:
                raise Held(None) from cause
            if cause.errno not in _NO_FLOCK:
                raise
            if created:
                path.unlink(missing_ok=True)
            return None
        except Held:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder removed the file before this process locked it


def _open(path: Path) -> tuple[int, bool]:
    """Open a lock file, and return its descriptor and whether it was created."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), True
        except FileExistsError:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), False


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _place_marker(path: Path, *, shared: bool) -> Path:
    """Create the file that stands for a lock where there is no flock, and return it."""
    owner = f"{socket.gethostname()} {os.getpid()}".encode()
    mark = path.with_name(f"{path.name}-{digest_bytes(owner)[:16]}") if shared else path
    if not shared:
        _refuse_marker(path)
    try:
        descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as cause:
        raise Held(mark) from cause
    try:
        os.write(descriptor, owner)
        os.close(descriptor)
        if shared:
            _refuse_marker(path)
        else:
            _refuse_shared_markers(path)
    except BaseException:
        mark.unlink(missing_ok=True)
        raise
    return mark


def _refuse_marker(path: Path) -> None:
    """Raise `Held` if the file's content stands for a lock; remove the content of a process that has ended."""
    try:
        owner = path.read_bytes()
    except FileNotFoundError:
        return
    if owner and not _has_ended(owner):
        raise Held(path)
    if owner:
        path.unlink(missing_ok=True)


def _refuse_shared_markers(path: Path) -> None:
    for mark in path.parent.glob(f"{glob.escape(path.name)}-*"):
        _refuse_marker(mark)


def _has_ended(owner: bytes) -> bool:
    """Return whether the process that a marker names ran on this host and no longer exists."""
    host, _space, number = owner.decode(errors="replace").rpartition(" ")
    if host != socket.gethostname() or not number.isascii() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
