# SPDX-License-Identifier: Apache-2.0
"""Answers each connection to a unix socket with the ring's status, as one JSON object, and closes it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from zpptool.admin.unix_server import UnixServer
from zpptool.ring.status import RingStatus

_SEND_TIMEOUT_S = 1.0


class StatusServer:
    """Serves the status at `path` until it is closed.

    Nothing is read from a client. One that does not read its answer delays the next by `_SEND_TIMEOUT_S` at most.

    Args:
        path: the socket's file.
        status: called for each connection.

    Raises:
        OSError: the socket cannot be bound there.
    """

    def __init__(self, path: Path, status: Callable[[], RingStatus]) -> None:
        self._status = status
        self._server = UnixServer(path, self._answer, "status")

    def close(self) -> None:
        """Accept no more connections, and remove the file."""
        self._server.close()

    def _answer(self, client: socket.socket) -> None:
        with client:
            client.settimeout(_SEND_TIMEOUT_S)
            client.sendall(msgspec.json.encode(self._status()))
