# SPDX-License-Identifier: Apache-2.0
"""A run's directory for its sockets and small files, which no other user can enter, gone with the run.

The invariant: a directory that its run has locked is in use. One whose run was killed is not locked any more, and is
taken away by the next run of the same user.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "zpp-"
_LOCK = "run.lock"


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory of this run's own. Its path is short: the address of a unix socket has at most 107 bytes."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK)  # it outlives its session in the variable
    parent = Path(runtime if usable else tempfile.gettempdir())
    _sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        unready = path / f"{_LOCK}.new"
        with unready.open("w") as lock:
            with suppress(OSError):  # where files cannot be locked, nothing is swept
                fcntl.flock(lock, fcntl.LOCK_EX)
                unready.rename(path / _LOCK)  # locked before anybody may look whether it is
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Take away what killed runs of this user have left."""
    for lock in parent.glob(f"{PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # in use, or gone just now
            _take_away(lock)


def _take_away(lock: Path) -> None:
    if lock.parent.lstat().st_uid == os.getuid():
        with lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
