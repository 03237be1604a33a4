# SPDX-License-Identifier: Apache-2.0
"""The options of a lane's connection."""

from __future__ import annotations

import socket

_DEAD_PEER_MS = 17_000
"""As for ZeroMQ's connections (`zpptool.wire.sockets`): a peer whose host is gone is noticed after this time."""


def tune(connection: socket.socket) -> None:
    """Set the options of a connection: no delay for small pieces, and an end if the peer's host is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
