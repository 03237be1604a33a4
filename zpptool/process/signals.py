# SPDX-License-Identifier: Apache-2.0
"""Signals between a user, a command and its processes.

A command gets stop requests as items of a queue, read at a suitable moment, and not as exceptions: an exception could
interrupt the code that ends child processes. The head of a pipeline is asked to drain by a signal of its own, because
SIGTERM ends it at once.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by Ctrl-C, by a service manager, and when the terminal closes."""
DRAIN_SIGNAL = signal.SIGUSR1
"""Asks a head to admit no more requests, and to end when those in progress have been answered."""
CUT_SIGNAL = signal.SIGUSR2
"""Asks a head to end the requests in progress with an error, and then to end: before SIGTERM, after which vLLM's server
kills its engine core before that could stop the ring."""


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


def end_this_process() -> None:
    """Send SIGTERM to this process's main thread, where a blocking call returns for it. May be called from any
    thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


def on_end_of_requests(
    drain: Callable[[], object] = end_this_process, cut: Callable[[], object] = end_this_process
) -> None:
    """Choose what a head does, in the main thread, at `DRAIN_SIGNAL` and `CUT_SIGNAL`.

    The defaults are for a process that serves no requests yet: it ends.
    """
    signal.signal(DRAIN_SIGNAL, lambda _number, _frame: drain())
    signal.signal(CUT_SIGNAL, lambda _number, _frame: cut())
