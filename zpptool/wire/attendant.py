# SPDX-License-Identifier: Apache-2.0
"""The thread that stands by a link: it hears when connections begin and end, and what the peer says meanwhile.

The invariant: it touches the link's socket only as any other thread does, in its turn, and never waits for that turn.
It has to be a thread, because libzmq's I/O thread blocks once a thousand monitor events wait unread, and because a link
that nobody uses at the moment must still welcome its peer.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import parse_monitor_message

from zpptool.wire.sockets import Socket

if TYPE_CHECKING:
    from zpptool.wire.endpoint import Endpoint

FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED | FAILED
_BUSY_S = 0.001
_SUSPECT_S = 0.5
_PROBE_MS = 5
_POLLIN = int(zmq.POLLIN)
_names = itertools.count()


class Attendant:
    """Stands by one link until its socket is closed.

    Args:
        link: is told of events (`_observe`), asked to hear its peer (`_hear_soon`) when `socket` may have words, and to
            look for its peer (`ping`) when that may have gone.
        socket: the link's own.
        words: whether words may come while nobody receives.
    """

    def __init__(self, link: Endpoint, socket: Socket, *, words: bool) -> None:
        address = f"inproc://zpptool.attendant.{next(_names)}"
        socket.monitor(address, _EVENTS)
        events = socket.context.socket(zmq.PAIR)
        events.setsockopt(zmq.LINGER, 0)
        events.connect(address)
        bell = int(socket.getsockopt(zmq.FD)) if words else None
        self._suspicion = [0.0]
        # No reference to the link, nor to its socket: one that is dropped unclosed must still go.
        self._thread = threading.Thread(
            target=_attend, args=(weakref.ref(link), events, bell, self._suspicion), name="zpptool-link", daemon=True
        )
        self._thread.start()

    def suspect(self) -> None:
        """Have the peer looked for (`_probe`) every few milliseconds for a while."""
        self._suspicion[0] = time.monotonic() + _SUSPECT_S

    def stop(self, socket: Socket) -> None:
        """End the thread. Call it where the socket is owned, before closing it."""
        socket.monitor(None, 0)
        self._thread.join()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread


def _attend(link_of: weakref.ref[Endpoint], events: Socket, bell: int | None, suspicion: list[float]) -> None:
    watched: list[tuple[Socket | int, int]] = [(events, _POLLIN)]
    if bell is not None:
        watched.append((bell, _POLLIN))
    with events:
        while True:
            try:
                suspects = time.monotonic() < suspicion[0]
                ready: dict[object, int] = dict(zmq.zmq_poll(watched, _PROBE_MS if suspects else -1))
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
            del link
