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

from zpptool.ownership import distrusted_directory

PREFIX = "zpp-"
_LOCK = "run.lock"


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory for this run. Its path is short: the address of a unix socket has at most 107 bytes."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parent = Path(runtime if _is_usable(runtime) else tempfile.gettempdir())
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


def _is_usable(runtime: str) -> bool:
    """Whether a run's directory may be created there: the variable may outlive its session, and after `sudo` it may
    name another user's directory, in which that user could replace this one's."""
    try:
        trusted = os.path.isabs(runtime) and distrusted_directory(Path(runtime)) is None
    except OSError:
        return False
    return trusted and os.access(runtime, os.W_OK | os.X_OK)


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
