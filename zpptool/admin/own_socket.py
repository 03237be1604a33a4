# SPDX-License-Identifier: Apache-2.0
"""Connections to the sockets of a head, refused where the head is not this user's.

The invariant: nothing is read from, or sent to, a process of another user. The directory and the socket's file are
examined before connecting, and the system is asked for the owner of the process at the other end after it, so that
nothing can be exchanged in between.
"""

from __future__ import annotations

import socket
from pathlib import Path

from zpptool.errors import ZppError, invalid_error
from zpptool.ownership import distrusted_socket, is_own_peer, peer_user


def connect_to_own(connection: socket.socket, path: Path) -> None:
    """Connect to a socket of this user.

    Args:
        connection: a unix socket that is not connected; the caller closes it.
        path: the socket's file.

    Raises:
        ZppError: (INVALID) the directory, the file or the process behind it is not this user's.
        OSError: there is nothing, or no process accepts connections there.
    """
    refuse_foreign_files(path)
    connection.connect(str(path))
    refuse_foreign_peer(connection, path)


def refuse_foreign_files(path: Path) -> None:
    """Refuse a socket whose file or directory is not this user's alone to change.

    Raises:
        ZppError: (INVALID) it is refused; OSError: there is nothing.
    """
    fault = distrusted_socket(path)
    if fault is not None:
        raise _foreign(fault)


def refuse_foreign_peer(connection: socket.socket, path: Path) -> None:
    """Refuse a connected socket behind which there is a process of another user.

    Raises:
        ZppError: (INVALID) it is refused; OSError: the connection has ended.
    """
    if not is_own_peer(connection):
        raise _foreign(f"the process behind {path} belongs to another user (uid {peer_user(connection)})")


def _foreign(fault: str) -> ZppError:
    return invalid_error(
        f"{fault}, so it is not trusted",
        "Run the command as the user who started the pipeline: only that user's directory, of mode 0700, is used.",
    )
