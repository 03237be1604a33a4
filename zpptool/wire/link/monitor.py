# SPDX-License-Identifier: Apache-2.0
"""A link's monitor: a thread that handles the beginning and the end of connections, and reads the peer's link messages.

The invariant: it uses the link's socket only in its turn, as any other thread does, and never waits for that turn. It
is a thread because libzmq's I/O thread blocks once a thousand monitor events wait unread, and because a link that no
thread uses at the moment must still welcome its peer.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from typing import Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from zpptool.wire.link.handshake_failures import BEGUN, FAILED
from zpptool.wire.sockets import Socket

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
    | zmq.EVENT_CONNECT_RETRIED
    | FAILED
    | BEGUN
)
_BUSY_S = 0.001
_PING_FOR_S = 0.5
_PING_EVERY_MS = 5
_RECONNECT_AFTER_S = 1.5
_POLLIN = int(zmq.POLLIN)
ADDRESS = "inproc://zpptool.monitor"
"""Where the socket's events are delivered; a context has one link."""


class MonitoredLink(Protocol):
    """What the monitor needs of a link."""

    def ping(self) -> None:
        """Check that the peer is still there. Never blocks."""

    def _on_socket_event(self, event: int, value: int) -> None:
        """Handle an event of the socket."""

    def _try_read(self) -> bool:
        """Process the peer's link messages; False if another thread has the socket, which will process them."""

    def _reconnect(self) -> None:
        """Connect again. Never blocks."""


class LinkMonitor:
    """Monitors one link until its socket is closed.

    Args:
        link: gets the events (`_on_socket_event`), is called when `socket` may have link messages (`_try_read`), and
            when the peer may be gone (`ping`).
        socket: the link's socket.
        reads: whether link messages may arrive while no thread receives.
    """

    def __init__(self, link: MonitoredLink, socket: Socket, *, reads: bool) -> None:
        socket.monitor(ADDRESS, _EVENTS)
        events = socket.context.socket(zmq.PAIR)
        events.setsockopt(zmq.LINGER, 0)
        events.connect(ADDRESS)
        descriptor = int(socket.getsockopt(zmq.FD)) if reads else None
        self._schedule = _Schedule()
        # No reference to the link, nor to its socket: a link that is dropped unclosed must still be collected.
        self._thread = threading.Thread(
            target=_monitor, args=(weakref.ref(link), events, descriptor, self._schedule), name="zpptool-link",
            daemon=True,
        )  # fmt: skip
        self._thread.start()

    def ping_for_a_while(self) -> None:
        """Have the link check for its peer (`ping`) every few milliseconds for half a second."""
        self._schedule.ping_until = time.monotonic() + _PING_FOR_S

    def reconnect_later(self, wanted: bool) -> None:
        """Schedule, or cancel, a new attempt to connect (`_reconnect`). Call it from the monitor's thread."""
        self._schedule.reconnect_at = time.monotonic() + _RECONNECT_AFTER_S if wanted else math.inf

    def stop(self, socket: Socket) -> None:
        """End the thread. The caller has the turn of the socket, and closes it afterwards."""
        socket.monitor(None, 0)
        self._thread.join()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the monitor's thread."""
        return threading.current_thread() is self._thread


class _Schedule:
    """What the monitor does by itself, and when, on the monotonic clock."""

    ping_until = 0.0
    reconnect_at = math.inf

    def wait_ms(self, now: float) -> int:
        """How long the monitor may sleep; -1 for no limit."""
        if now < self.ping_until:
            return _PING_EVERY_MS
        return -1 if self.reconnect_at == math.inf else math.ceil(max(self.reconnect_at - now, 0.0) * 1000)


def _monitor(link_of: weakref.ref[MonitoredLink], events: Socket, descriptor: int | None, schedule: _Schedule) -> None:
    watched: list[tuple[Socket | int, int]] = [(events, _POLLIN)]
    if descriptor is not None:
        watched.append((descriptor, _POLLIN))
    with events:
        while True:
            try:
                now = time.monotonic()
                pings = now < schedule.ping_until
                ready: dict[object, int] = dict(zmq.zmq_poll(watched, schedule.wait_ms(now)))
                event = parse_monitor_message(events.recv_multipart()) if events in ready else None
            except zmq.ContextTerminated:
                return
            link = link_of()
            if link is None or (event and event["event"] == zmq.EVENT_MONITOR_STOPPED):
                return
            if event:
                link._on_socket_event(event["event"], event["value"])
            if descriptor in ready and not link._try_read():
                time.sleep(_BUSY_S)  # the thread that has the socket reads what there is
            if pings and not ready:
                link.ping()
            if time.monotonic() >= schedule.reconnect_at:
                schedule.reconnect_at = math.inf
                link._reconnect()
            del link
