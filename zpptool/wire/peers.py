# SPDX-License-Identifier: Apache-2.0
"""How many peers a socket has, told by ZeroMQ's socket monitor.

The invariant: `PeerWatch.count` is the number of connections whose handshake succeeded and that have not ended. A
stranger who connects and fails the handshake (a port scan, a health probe) never counts. A thread of its own reads the
events, because libzmq's I/O thread blocks once a thousand of them wait unread.

A connection that breaks off its handshake is not always reported as failed: noise and sockets of another kind are only
seen to end. So connections are told apart by their file descriptors, which the begin and the end of each name.
"""

from __future__ import annotations

import itertools
import threading

import zmq
from zmq.utils.monitor import parse_monitor_message

from zpptool.wire.deadline import Deadline
from zpptool.wire.sockets import Socket

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_BEGUN = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_EVENTS = _BEGUN | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED | _FAILED
_names = itertools.count()


class PeerWatch:
    """Counts the peers of one socket until the socket is closed."""

    def __init__(self, socket: Socket) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._changes = 0
        self._released = False
        address = f"inproc://zpptool.peers.{next(_names)}"
        socket.monitor(address, _EVENTS)
        events = socket.context.socket(zmq.PAIR)
        events.setsockopt(zmq.LINGER, 0)
        events.connect(address)
        self._thread = threading.Thread(target=self._follow, args=(events,), name="zpptool-peers", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Peers connected now."""
        return self._count

    @property
    def changes(self) -> int:
        """How many peers have come or gone so far."""
        return self._changes

    def wait_for_one(self, deadline: Deadline) -> int:
        """Wait until there is exactly one peer, at most until the deadline or `release`; the count then."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 1 or self._released, deadline.remaining_s())
            return self._count

    def release(self) -> None:
        """Let go of whoever waits in `wait_for_one`; the watch itself goes on."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def stop(self, socket: Socket) -> None:
        """End the thread. Call it where the socket is owned, before closing it.

        (The watch keeps no reference of its own to the socket: a link that is dropped unclosed must still go.)
        """
        socket.monitor(None, 0)
        self._thread.join()

    def _follow(self, events: Socket) -> None:
        connections = Connections()
        with events:
            while True:
                try:
                    event = parse_monitor_message(events.recv_multipart())
                except zmq.ContextTerminated:
                    return
                if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                    return
                connections.take(event["event"], event["value"])
                self._set(len(connections.peers))

    def _set(self, count: int) -> None:
        if count != self._count:
            with self._changed:
                self._count = count
                self._changes += 1
                self._changed.notify_all()


class Connections:
    """Which connections of a socket are peers, by what its monitor told so far.

    Attributes:
        peers: the file descriptors of those whose handshake succeeded.
    """

    def __init__(self) -> None:
        self.peers: set[int] = set()
        self._greeting: list[int] = []
        self._failed = False

    def take(self, event: int, value: int) -> None:
        """Take in one event.

        A handshake's success names no connection. Of several in their handshake it is taken for the youngest's, for a
        peer needs no time for it; an older one is only silent. Should that one be reported as failed after all, it was
        another's.
        """
        if event & _BEGUN:
            self._greeting.append(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.peers.add(self._greeting.pop())
        elif event & _FAILED:
            self._failed = True  # the end of that connection is the next event
        elif event == zmq.EVENT_DISCONNECTED:
            if value in self._greeting:
                self._greeting.remove(value)
            else:
                self.peers.discard(value)
                if self._failed and self._greeting:
                    self.peers.add(self._greeting.pop())
            self._failed = False
