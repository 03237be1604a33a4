# SPDX-License-Identifier: Apache-2.0
"""Progress of a stage's main loop, and the thread that reports it.

The invariant: progress is recorded by the main loop itself, never by the thread that reports it. So a process whose
main loop hangs can be distinguished from one that works, even while its other threads run.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from zpptool.ring.loop_times import LoopTimes, Rest
from zpptool.ring.status import BEAT_S, COMPUTING, READY, WAITING, LinkStatus, StageStatus
from zpptool.wire.link import LinkSender


class Pulse:
    """What a main loop is doing. Written by the main loop, read by any thread. `at_rest` in another thread, which may
    send for the main loop, changes nothing.

    Attributes:
        phase: one of the phases of `zpptool.ring.status`.
        steps: how many calls were completed.
        times: what it has spent its time on.
    """

    def __init__(self) -> None:
        self.phase = WAITING
        self.steps = 0
        self.times = LoopTimes()
        self._moved = time.monotonic()
        self._at_work = False
        self._main_loop: int | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the last progress of a main loop that works; 0 while it waits for others."""
        return time.monotonic() - self._moved if self._at_work else 0.0

    def progress(self) -> None:
        """Record progress. Cheap enough to call for every layer."""
        self._moved = time.monotonic()

    @contextmanager
    def at_work(self, phase: str) -> Iterator[None]:
        """The main loop works on one call within this context."""
        self.phase = phase
        self._main_loop = threading.get_ident()
        self.progress()
        self._at_work = True
        self.times.begin(computes=phase == COMPUTING)
        try:
            yield
        finally:
            self.times.end()
            self._at_work = False
            self.steps += 1
            self.phase = READY

    @contextmanager
    def at_rest(self, waits_for: Rest) -> Iterator[None]:
        """Within this context the main loop waits for another place in the middle of a call: no hang of its own."""
        if threading.get_ident() != self._main_loop:
            yield
            return
        was, self._at_work = self._at_work, False
        began = time.monotonic()
        try:
            yield
        finally:
            self.times.rested(waits_for, time.monotonic() - began)
            self.progress()
            self._at_work = was


class Heartbeat:
    """Calls a function from a thread of its own, every `BEAT_S` seconds and on request.

    Args:
        beat: the function; it must not block for long.
        name: of the thread.
    """

    def __init__(self, beat: Callable[[], None], name: str) -> None:
        self._beat = beat
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def soon(self) -> None:
        """Beat now. A stage does so when the next one has reported, so that a report is not delayed at each stage."""
        self._due.set()

    def stop(self) -> None:
        """End the thread, after a beat under way."""
        self._stopped = True
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._beat()
            self._due.wait(BEAT_S)
            self._due.clear()


def own_status(stage: int, layers: tuple[int, int] | None, pulse: Pulse, link: LinkSender) -> StageStatus:
    """The status of this process now.

    Args:
        stage: its place.
        layers: the half-open layer range that it owns; None for the head.
        pulse: of its main loop.
        link: the one that it sends on.
    """
    downstream = link_status(link)
    return StageStatus(
        stage=stage,
        host=socket.gethostname(),
        pid=os.getpid(),
        layers=layers,
        phase=pulse.phase,
        epoch=link.party.epoch,
        memory_bytes=psutil.Process().memory_info().rss,
        beat_age_s=pulse.age_s,
        heard_age_s=0.0,
        steps=pulse.steps,
        receive_s=pulse.times.receive_s,
        compute_s=pulse.times.compute_s,
        send_s=pulse.times.send_s,
        idle_s=pulse.times.idle_s,
        busy=pulse.times.busy_share(),
        rtt_ms=downstream.rtt_ms,
        link=downstream,
    )


def link_status(link: LinkSender) -> LinkStatus:
    """The status of a link, as its sender sees it."""
    counters = link.counters
    return LinkStatus(
        peer=link.peer,
        endpoint=link.endpoint,
        state=link.state,
        epoch=link.party.epoch,
        rtt_ms=None if counters.rtt_s is None else counters.rtt_s * 1000,
        queue=link.queue,
        bytes_sent=counters.bytes_sent,
        bytes_received=counters.bytes_taken,
        messages_sent=counters.messages_sent,
        messages_received=counters.messages_taken,
        refused=link.refused,
        last_error=link.last_error,
        sessions=counters.sessions,
        wait_s=counters.wait_s,
        send_s=counters.send_s,
        rtt_counts=tuple(counters.rtt_counts),
        rtt_sum_s=counters.rtt_sum_s,
        knocks=counters.knocks,
    )
