# SPDX-License-Identifier: Apache-2.0
"""Signals as news to be read when it suits, not as exceptions anywhere: what ends things must not be ended itself."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, a terminal that was closed."""


@contextmanager
def stop_requests() -> Iterator[queue.SimpleQueue[int]]:
    """A queue that gets every signal that asks this process to stop. One that was ignored before (nohup) still is."""
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _frame: FrameType | None) -> None:
        asked.put(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heard = [number for number in STOP_SIGNALS if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number in heard:
            signal.signal(number, before[number])
