# SPDX-License-Identifier: Apache-2.0
"""A run's directory for its sockets and small files. Other users cannot enter it, and it is removed with the run.

The invariant: a directory that its run has locked is in use. One whose run was killed is no longer locked, and the
same user's next run removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zpptool.errors import usage_error
from zpptool.ownership import distrusted_directory
from zpptool.socket_directories import LONGEST_PARENT, parents, usable_parent

PREFIX = "zpp-"
_LOCK = "run.lock"


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory for this run.

    Raises:
        ZppError: (USAGE) there is no directory for it whose path is short enough for the address of a unix socket.
    """
    parent = usable_parent()
    if parent is None:
        tried = ", ".join(map(str, parents()))
        raise usage_error(
            f"this run's sockets fit in none of {tried}: each is not writable, or longer than {LONGEST_PARENT} bytes",
            "Set XDG_RUNTIME_DIR or TMPDIR to a writable directory with a shorter path.",
        )
    _remove_abandoned(parent)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        unready = path / f"{_LOCK}.new"
        with unready.open("w") as lock:
            with suppress(OSError):  # where files cannot be locked, no directory is removed
                fcntl.flock(lock, fcntl.LOCK_EX)
                unready.rename(path / _LOCK)  # locked before another run can check it
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of this user's killed runs."""
    for lock in parent.glob(f"{PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # in use, or removed meanwhile
            _remove_unlocked(lock)


def _remove_unlocked(lock: Path) -> None:
    if distrusted_directory(lock.parent) is None:
        with open(os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "rb+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
