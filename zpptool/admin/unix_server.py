# SPDX-License-Identifier: Apache-2.0
"""A unix socket that tells whoever connects how the ring fares, as one JSON object, and hangs up.

The invariant: the socket's file is its owner's alone (0600), nothing that is sent to it is read, and one who connects
and does not read holds up nothing but the next one, for a second.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from zpptool.ring.status import RingStatus

_READ_WITHIN_S = 1.0
_LOOK_AROUND_S = 0.5


class StatusSocket:
    """Tells the status at `path` until it is closed.

    Args:
        path: where; a file that is left from a process that was killed is taken over.
        status: asked anew each time.

    Raises:
        OSError: it cannot be bound there.
    """

    def __init__(self, path: Path, status: Callable[[], RingStatus]) -> None:
        self._path = path
        self._status = status
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            os.chmod(path, 0o600)  # its directory is private, so nobody was quicker
            self._socket.listen(8)
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(_LOOK_AROUND_S)
        self._thread = threading.Thread(target=self._serve, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, and take the file away."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                asking, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with asking, suppress(OSError):
                asking.settimeout(_READ_WITHIN_S)
                asking.sendall(msgspec.json.encode(self._status()))
