# SPDX-License-Identifier: Apache-2.0
"""The directories in which unix sockets of this user may lie: writable, and with paths short enough for an address.

The address of a unix socket holds 108 bytes on Linux, one of them the closing NUL (unix(7)).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from zpptool.ownership import distrusted_directory

LONGEST_SOCKET_PATH = 107
"""Bytes."""
LONGEST_PARENT = 76
"""Bytes; the rest of the path is for a directory of zpptool's own and the socket's name."""
SHORT_PARENT = Path("/tmp")


def parents() -> list[Path]:
    """The directories in which one of zpptool's own may be, the preferred one first; /tmp where no other is usable."""
    runtime, temporary = os.environ.get("XDG_RUNTIME_DIR", ""), Path(tempfile.gettempdir())
    named = [Path(runtime), temporary] if _is_own(runtime) else [temporary]
    return list(dict.fromkeys(named if any(map(is_usable, named)) else [*named, SHORT_PARENT]))


def is_usable(parent: Path) -> bool:
    """Whether a directory exists, can be written, and has a short path."""
    return len(os.fsencode(parent)) <= LONGEST_PARENT and os.access(parent, os.W_OK | os.X_OK)


def usable_parent() -> Path | None:
    """The first of `parents` that is usable; None where none is."""
    return next((each for each in parents() if is_usable(each)), None)


def _is_own(runtime: str) -> bool:
    """Whether XDG_RUNTIME_DIR names a directory of this user: the variable may outlive its session, and after `sudo`
    it may name another user's directory, in which that user could replace this one's."""
    try:
        return os.path.isabs(runtime) and distrusted_directory(Path(runtime)) is None
    except OSError:
        return False
