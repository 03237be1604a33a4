# SPDX-License-Identifier: Apache-2.0
"""A client that sends bytes as they are, as a stranger would."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


def connect(url: str, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """A connection to the server of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout_s)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection; a reset counts as closing."""
    received = b""
    try:
        while block := connection.recv(65536):
            received += block
    except ConnectionResetError:
        pass
    return received


def send_raw(url: str, *lines: str, body: bytes = b"") -> bytes:
    """Send a request of these lines on a connection that the server is to close, and return its response."""
    with connect(url) as connection:
        connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
        return read_all(connection)


def status_of(response: bytes) -> int:
    """The HTTP status of a response; 0 for none."""
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.") else 0
