# SPDX-License-Identifier: Apache-2.0
"""A server on a unix socket that only its owner can reach.

The invariant: the socket's file is its owner's alone (0600, in a directory that is private too), only its owner and
root are answered, a client that connects and then stays silent never delays the closing of the server, and the file is
removed when the server closes.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from zpptool.ownership import peer_user

_POLL_S = 0.5


class UnixServer:
    """Listens at `path` on a thread of its own until it is closed.

    Args:
        path: the socket's file; a file left behind by a killed process is replaced.
        handle: called on the server's thread with each accepted connection; it owns the connection and closes it. An
            `OSError` that it raises ends that connection only.
        name: the thread's name.

    Raises:
        OSError: the socket cannot be bound there.
    """

    def __init__(self, path: Path, handle: Callable[[socket.socket], None], name: str) -> None:
        self._path = path
        self._handle = handle
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            os.chmod(path, 0o600)  # the directory is private, so nothing could connect before this line
            self._socket.listen(8)
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(_POLL_S)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more connections, wait for the thread, and remove the file."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with suppress(OSError):
                if peer_user(connection) in (os.geteuid(), 0):
                    self._handle(connection)
                else:
                    connection.close()
