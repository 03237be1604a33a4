# SPDX-License-Identifier: Apache-2.0
"""The head's end of one connection on which a planned change is requested."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

import msgspec

from zpptool.admin.change_types import MOST_BYTES, Answer, Request, decode_request, encode_line
from zpptool.errors import usage_error

READ_TIMEOUT_S = 5.0
"""How long a client may take to send its request."""


class ChangeConnection:
    """Reads one request and sends answers. Answers to a client that has disconnected are dropped.

    Args:
        connection: the accepted socket; its owner closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._disconnected = False
        connection.settimeout(READ_TIMEOUT_S)

    def request(self) -> Request:
        """The client's request.

        Raises:
            ZppError: (USAGE) it is none, or does not arrive in time.
        """
        line = b""
        try:
            while not line.endswith(b"\n"):
                piece = self._connection.recv(MOST_BYTES)
                line += piece
                if not piece or len(line) > MOST_BYTES:
                    raise usage_error("a planned change is requested with one line of JSON")
            return decode_request(line)
        except TimeoutError as late:
            raise usage_error(f"no request has arrived in {READ_TIMEOUT_S:g} s") from late
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            raise usage_error(f"the request cannot be read: {cause}") from cause

    def disconnected(self) -> bool:
        """Whether the client has closed the connection."""
        if not self._disconnected and select.select([self._connection], [], [], 0)[0]:
            with suppress(BlockingIOError):
                self._disconnected = not self._connection.recv(1, socket.MSG_DONTWAIT)
        return self._disconnected

    def send(self, answer: Answer) -> None:
        """Send an answer."""
        try:
            self._connection.sendall(encode_line(answer))
        except OSError:
            self._disconnected = True
