# SPDX-License-Identifier: Apache-2.0
"""Copy byte ranges between files: by sharing blocks where the file system supports it, else by a copy in the kernel.

The target holds the same bytes with every method. Bytes are read into the process only where the kernel cannot copy
them. Writeback starts while the copy is running, so that the final fsync has little left to wait for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from zpptool.checkpoint.header import BLOCK_BYTES
from zpptool.checkpoint.shards import Run
from zpptool.errors import ZppError, invalid_error

STEP_BYTES = 8 * 1024 * 1024
"""Bytes copied between two checks for cancellation, progress reports and writeback requests."""
_FICLONERANGE = 0x4020940D
"""ioctl_ficlonerange(2): the target shares the source's blocks, copy-on-write."""
_SYNC_FILE_RANGE_WRITE = 2
_NOT_SHARED = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY, errno.ENOSYS}
_NOT_COPIED = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}

Advance = Callable[[int], None]


class Stopped(Exception):
    """A job was cancelled because another one failed or the user interrupted."""


def hardlink(source: Path, target: Path) -> None:
    """Create `target` as a hard link to the file `source`.

    Raises:
        ZppError: (INVALID) the file system does not support it; OSError: any other failure.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError as cause:
        if cause.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise invalid_error(
                f"{source} cannot be hard linked to {target.parent}: {cause.strerror}",
                "choose an --output-dir on the file system of the model, or --mode auto",
            ) from cause
        raise


def can_reflink(source: Path, directory: Path) -> bool:
    """Return whether files in `directory` can share blocks with `source`; tries it on an unnamed temporary file."""
    try:
        target = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError:
        return False
    try:
        with source.open("rb") as opened:
            return reflink(opened.fileno(), target, Run(0, 0, BLOCK_BYTES)) > 0
    finally:
        os.close(target)


def reflink(source: int, target: int, run: Run) -> int:
    """Make the target share the source's blocks of `run`.

    Only whole blocks can be shared, and only if the run has the same offset within a block in both files; the partial
    blocks at its two ends are copied.

    Args:
        source: file descriptor to read from.
        target: file descriptor to write to.
        run: the bytes to share.

    Returns:
        the bytes now present in the target: all of the run, or 0 if nothing could be shared.

    Raises:
        ZppError: (FAILURE) the source ended early; OSError: the disk failed.
    """
    before = -run.source % BLOCK_BYTES
    inner = (run.nbytes - before) // BLOCK_BYTES * BLOCK_BYTES
    if (run.source - run.target) % BLOCK_BYTES or inner <= 0:
        return 0
    arguments = struct.pack("=qQQQ", source, run.source + before, inner, run.target + before)
    try:
        fcntl.ioctl(target, _FICLONERANGE, arguments)
    except OSError as cause:
        if cause.errno in _NOT_SHARED:
            return 0
        raise
    done = before + inner
    for edge in (Run(run.source, run.target, before), Run(run.source + done, run.target + done, run.nbytes - done)):
        content = os.pread(source, edge.nbytes, edge.source)
        if len(content) < edge.nbytes:
            raise ended_early(_name_of(source))
        _write_at(target, content, edge.target)
    return run.nbytes


def copy_run(
    source: int, target: int, run: Run, stop: threading.Event, advance: Advance, *, synced: bool = True
) -> None:
    """Copy a run with copy_file_range(2) where the kernel supports it, else through a small buffer.

    Args:
        source: file descriptor to read from.
        target: file descriptor to write to.
        run: the bytes to copy.
        stop: cancels the copy when set.
        advance: called with the number of bytes just copied.
        synced: request writeback during the copy, because the file is fsynced at the end.

    Raises:
        ZppError: (FAILURE) the source ended early; OSError: the disk failed; Stopped: `stop` was set.
    """
    done, in_kernel = 0, True
    while done < run.nbytes:
        if stop.is_set():
            raise Stopped
        step = min(STEP_BYTES, run.nbytes - done)
        if in_kernel:
            try:
                got = os.copy_file_range(source, target, step, run.source + done, run.target + done)
            except OSError as cause:
                if cause.errno not in _NOT_COPIED:
                    raise
                in_kernel = False
                continue
        else:
            content = os.pread(source, min(step, BLOCK_BYTES * 64), run.source + done)
            got = len(content)
            _write_at(target, content, run.target + done)
        if not got:
            raise ended_early(_name_of(source))
        if synced:
            start_writing(target, run.target + done, got)
        done += got
        advance(got)


def ended_early(name: object) -> ZppError:
    """Build the error for a source that became shorter after its header was read."""
    return ZppError(f"{name} ended while it was read", "check whether another process writes to it")


def start_writing(target: int, offset: int, nbytes: int) -> None:
    """Ask the kernel to start writing a byte range to the disk, without waiting. It is a hint: a failure is ignored."""
    if _sync_file_range is not None:
        _sync_file_range(target, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


def sync(descriptor: int) -> None:
    """Fsync a file or directory. A file system that has no fsync for it (some FUSE and network mounts) is accepted."""
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _name_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _write_at(target: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        put = os.pwrite(target, view, offset)
        view, offset = view[put:], offset + put


_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
