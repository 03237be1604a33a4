# SPDX-License-Identifier: Apache-2.0
"""How other threads report to the head's receiving thread."""

from __future__ import annotations

import queue
from collections.abc import Callable

from zpptool.ring.head.epochs import Event
from zpptool.ring.messages import Fault


class EventQueue:
    """Events for the receiving thread, and faults that stages have reported upstream. Any thread may add; none waits.

    Faults are kept apart because they can be the cause of an event that arrives before them.

    Args:
        wake: called after each addition; ends the receiving thread's wait for messages. It must not block.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._faults: queue.SimpleQueue[Fault] = queue.SimpleQueue()

    def post(self, event: Event) -> None:
        """Add an event."""
        self._events.put(event)
        self._wake()

    def post_fault(self, fault: Fault) -> None:
        """Add a fault that a stage has reported."""
        self._faults.put(fault)
        self._wake()

    def next_event(self) -> Event | None:
        """The oldest event, removed; None for an empty queue."""
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    def next_fault(self) -> Fault | None:
        """The oldest reported fault, removed; None for an empty queue."""
        try:
            return self._faults.get_nowait()
        except queue.Empty:
            return None
