# SPDX-License-Identifier: Apache-2.0
"""The thread that stands by a link: it hears when connections begin and end, and what the peer says meanwhile.

The invariant: it touches the link's socket only as any other thread does, in its turn, and never waits for that turn.
It has to be a thread, because libzmq's I/O thread blocks once a thousand monitor events wait unread, and because a link
that nobody uses at the moment must still welcome its peer.
"""

from __future__ import annotations

import itertools
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
_SUSPECT_S = 0.5
_PROBE_MS = 5
_MEND_AFTER_S = 1.5
_POLLIN = int(zmq.POLLIN)
_names = itertools.count()


class MonitoredLink(Protocol):
    """What the monitor needs of a link."""

    def ping(self) -> None:
        """Look for the peer. Never waits."""

    def _observe(self, event: int, value: int) -> None: ...

    def _hear_soon(self) -> bool: ...

    def _mend(self) -> None: ...


class LinkMonitor:
    """Stands by one link until its socket is closed.

    Args:
        link: is told of events (`_observe`), asked to hear its peer (`_hear_soon`) when `socket` may have words, and to
            look for its peer (`ping`) when that may have gone.
        socket: the link's own.
        words: whether words may come while nobody receives.
    """

    def __init__(self, link: MonitoredLink, socket: Socket, *, words: bool) -> None:
        address = f"inproc://zpptool.attendant.{next(_names)}"
        socket.monitor(address, _EVENTS)
        events = socket.context.socket(zmq.PAIR)
        events.setsockopt(zmq.LINGER, 0)
        events.connect(address)
        bell = int(socket.getsockopt(zmq.FD)) if words else None
        self._times = _Times()
        # No reference to the link, nor to its socket: one that is dropped unclosed must still go.
        self._thread = threading.Thread(
            target=_attend, args=(weakref.ref(link), events, bell, self._times), name="zpptool-link", daemon=True
        )
        self._thread.start()

    def suspect(self) -> None:
        """Have the peer looked for (`_probe`) every few milliseconds for a while."""
        self._times.suspect_until = time.monotonic() + _SUSPECT_S

    def mend_later(self, wanted: bool) -> None:
        """Have the link connect anew (`_mend`) in a while, or no longer. Call it from this thread."""
        self._times.mend_at = time.monotonic() + _MEND_AFTER_S if wanted else math.inf

    def stop(self, socket: Socket) -> None:
        """End the thread. Call it where the socket is owned, before closing it."""
        socket.monitor(None, 0)
        self._thread.join()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread


class _Times:
    """When the attendant has to look by itself, on the monotonic clock."""

    suspect_until = 0.0
    mend_at = math.inf

    def wait_ms(self, now: float) -> int:
        """How long it may sleep; -1 for as long as nothing happens."""
        if now < self.suspect_until:
            return _PROBE_MS
        return -1 if self.mend_at == math.inf else math.ceil(max(self.mend_at - now, 0.0) * 1000)


def _attend(link_of: weakref.ref[MonitoredLink], events: Socket, bell: int | None, times: _Times) -> None:
    watched: list[tuple[Socket | int, int]] = [(events, _POLLIN)]
    if bell is not None:
        watched.append((bell, _POLLIN))
    with events:
        while True:
            try:
                now = time.monotonic()
                suspects = now < times.suspect_until
                ready: dict[object, int] = dict(zmq.zmq_poll(watched, times.wait_ms(now)))
                event = parse_monitor_message(events.recv_multipart()) if events in ready else None
            except zmq.ContextTerminated:
                return
            link = link_of()
            if link is None or (event and event["event"] == zmq.EVENT_MONITOR_STOPPED):
                return
            if event:
                link._observe(event["event"], event["value"])
            if bell in ready and not link._hear_soon():
                time.sleep(_BUSY_S)  # whoever has the socket now hears what there is
            if suspects and not ready:
                link.ping()
            if time.monotonic() >= times.mend_at:
                times.mend_at = math.inf
                link._mend()
            del link
