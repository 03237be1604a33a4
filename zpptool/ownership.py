# SPDX-License-Identifier: Apache-2.0
"""Whether a file, a directory or the process behind a unix socket belongs to this process's user.

On a machine with several users anybody can create a directory with any name in the temp directory. So a name proves
nothing: what is read from a place is trusted only if this user owns it and no other user may change it, and what
arrives from a socket only if the system names this user as the owner of the process at the other end.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

from zpptool.errors import invalid_error

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def distrusted_directory(path: Path) -> str | None:
    """Why a directory is not this user's alone to change, as a clause; None if it is. Links are not followed.

    Raises:
        OSError: there is nothing, or it cannot be examined.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'not a directory'}"
    return _changeable_by_others(path, found)


def distrusted_socket(path: Path) -> str | None:
    """Why a unix socket, or the directory that it lies in, is not this user's alone to change; None if both are.

    Links are not followed.

    Raises:
        OSError: there is nothing, or it cannot be examined.
    """
    fault = distrusted_directory(path.parent)
    if fault is not None:
        return fault
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        return f"{path} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'not a socket'}"
    return _changeable_by_others(path, found)


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end of a unix socket; of a listening one, when it began to listen.

    Raises:
        OSError: this system does not report it.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def is_own_peer(connection: socket.socket) -> bool:
    """Whether the process at the other end of a unix socket belongs to this user.

    Raises:
        OSError: this system does not report it.
    """
    return peer_user(connection) == os.geteuid()


def refuse_unguarded(path: Path, found: os.stat_result, what: str) -> None:
    """Refuse a file of secrets that others can read or change.

    One of root's may be readable by this process's group too, which is how Kubernetes provides a Secret to a user
    (PostgreSQL has the same rule for its key files).

    Args:
        path: of the file, for messages.
        found: of the open file.
        what: the kind of file, for messages.

    Raises:
        ZppError: (INVALID) it belongs to another user, or others can read or change it.
    """
    me = os.geteuid()
    if found.st_uid not in (me, 0):
        raise invalid_error(f"the {what} {path} belongs to another user (uid {found.st_uid})", f"chown {me} {path}")
    shared = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP if found.st_uid == 0 and me != 0 else _OTHERS
    if found.st_mode & shared:
        mode = stat.S_IMODE(found.st_mode)
        raise invalid_error(f"others can read or change the {what} {path} (mode {mode:04o})", f"chmod 600 {path}")


def _changeable_by_others(path: Path, found: os.stat_result) -> str | None:
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user (uid {found.st_uid})"
    if found.st_mode & _OTHERS_MAY_WRITE:
        return f"other users can write to {path} (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
