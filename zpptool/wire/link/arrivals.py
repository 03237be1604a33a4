# SPDX-License-Identifier: Apache-2.0
"""The ZeroMQ messages of a link and the datagrams of its Unix socket, in the order in which they were sent.

The invariant: when a message is found at ZeroMQ, the Unix socket is read once more, and anything found there is
returned first. The sender sees to the converse: it uses the Unix socket only when the receiver has acknowledged
everything that was sent by ZeroMQ before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zmq

from zpptool.wire.link.inbound import Inbound
from zpptool.wire.link.socket_turn import SocketTurn
from zpptool.wire.message.framing import Buffer
from zpptool.wire.sockets import Socket

_DONTWAIT = int(zmq.DONTWAIT)


class Arrivals:
    """What has arrived at one receiving link. Call its methods with the turn of the socket.

    Args:
        socket: of the link.
        turn: of that socket.
        readable: whether a message waits in the socket.
        inbound: has the Unix socket of the session.
        max_frames: of a message; more parts than such a message can have are dropped, except one.
    """

    def __init__(
        self, socket: Socket, turn: SocketTurn, readable: Callable[[], bool], inbound: Inbound, max_frames: int
    ) -> None:
        self._socket = socket
        self._turn = turn
        self._readable = readable
        self._inbound = inbound
        self._max_parts = max_frames + 1
        self._held_back: Sequence[Buffer] | None = None

    def next(self) -> Sequence[Buffer] | None:
        """The parts of the next ZeroMQ message or datagram; None when there is none."""
        unix_socket = self._inbound.unix_socket
        if unix_socket is None:
            return self._receive()
        if (datagram := unix_socket.receive()) is not None:
            return (datagram,)
        parts, self._held_back = self._held_back or self._receive(), None
        if parts is not None and (datagram := unix_socket.receive()) is not None:
            self._held_back = parts
            return (datagram,)
        return parts

    def forget(self) -> None:
        """Drop what is held back: it belongs to a session that is over."""
        self._held_back = None

    def _receive(self) -> list[memoryview] | None:
        """The parts of one ZeroMQ message; None when there is none."""
        if not self._readable():  # cheaper than the exception that would say so
            return None
        part = self._socket.recv(_DONTWAIT, copy=False)
        self._turn.torn = True
        parts = [part.buffer]
        while part.more:
            part = self._socket.recv(_DONTWAIT, copy=False)
            if len(parts) <= self._max_parts:
                parts.append(part.buffer)
        self._turn.torn = False
        return parts
