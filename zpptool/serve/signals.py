# SPDX-License-Identifier: Apache-2.0
"""Signals as items of a queue, read at a suitable moment, and not as exceptions: an exception could interrupt the code
that ends child processes."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by Ctrl-C, by a service manager, and when the terminal closes."""


@contextmanager
def stop_requests() -> Iterator[queue.SimpleQueue[int]]:
    """A queue that gets the number of every signal that asks this process to stop. A signal that was ignored before
    (nohup) stays ignored."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def enqueue(number: int, _frame: FrameType | None) -> None:
        received.put(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number in STOP_SIGNALS if before[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, enqueue)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, before[number])
