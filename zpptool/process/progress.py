# SPDX-License-Identifier: Apache-2.0
"""A process's phase while the ring does not know it yet: one small file for each process, read by its parent.

Phases cover what precedes the ring, and how much of the weights is loaded; the ring reports everything else
(`ring.status`). A process without a phase file reports nothing, and one that cannot write to it continues: a phase is
information, never a reason to fail. A phase has a fixed width and is written in one call, so a reader never sees a
part of one.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from zpptool.process.environment import phase_file

WIDTH = 64
"""Bytes of a phase, padded with spaces."""

STARTING = "starting"
WAITING = "waiting for the other stages"
LOADING = "loading"
LOADED = "loaded"
"""The phase of a process that is able to do its work."""


def report_phase(phase: str) -> None:
    """Write this process's phase to its phase file, if it has one."""
    path = phase_file()
    if path is None:
        return
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, phase.encode()[:WIDTH].ljust(WIDTH), 0)
        finally:
            os.close(file)


def loading_progress(total_bytes: int) -> Callable[[int], None]:
    """A function that takes the size of each tensor as it is read, and reports `loading 43%` when that changes.

    Args:
        total_bytes: of all tensors to read.
    """
    done, reported = 0, -1

    def read(more: int) -> None:
        nonlocal done, reported
        done += more
        percent = 100 * done // max(total_bytes, 1)
        if percent != reported:
            reported = percent
            report_phase(f"{LOADING} {min(percent, 100)}%")

    read(0)
    return read


def show_life(age_s: float) -> None:
    """Record when this process last made progress, as the time of its phase file, if it has one.

    Args:
        age_s: how many seconds ago that was.
    """
    path = phase_file()
    if path is None:
        return
    moved_at = time.time() - age_s
    with suppress(OSError):
        os.utime(path, (moved_at, moved_at), follow_symlinks=False)


def still_for_s(path: Path) -> float:
    """Seconds since the process of this phase file last made progress or changed its phase; 0 if there is no file."""
    try:
        return max(time.time() - path.lstat().st_mtime, 0.0)
    except OSError:
        return 0.0


def read_phase(path: Path) -> str:
    """The phase that a process last wrote to this file; `STARTING` if it has written none, or if what is there is not a
    regular file of this user."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return STARTING
    try:
        found = os.fstat(file)
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        written = os.read(file, WIDTH) if own else b""
    except OSError:
        return STARTING
    finally:
        os.close(file)
    return written.decode(errors="replace").strip() or STARTING
