# SPDX-License-Identifier: Apache-2.0
"""The sign of life of a stage's main loop, and the thread that carries it to the head.

The invariant: the sign comes from the main loop itself, never from the thread that carries it: a process whose threads
all run and whose main loop stands still is told apart from one that works.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from zpptool.ring.status import BEAT_S, READY, WAITING, LinkStatus, StageStatus
from zpptool.wire.link import LinkSender


class Pulse:
    """What a main loop does, written by itself and read by any thread.

    Attributes:
        phase: in a word of `zpptool.ring.status`.
        steps: calls done.
        receive_s: time waited for tensors.
    """

    def __init__(self) -> None:
        self.phase = WAITING
        self.steps = 0
        self.receive_s = 0.0
        self._moved = time.monotonic()
        self._at_work = False

    @property
    def age_s(self) -> float:
        """How long the main loop has been at work without moving; 0 where it waits for others."""
        return time.monotonic() - self._moved if self._at_work else 0.0

    def progress(self) -> None:
        """The main loop moves. Cheap: to be called for every layer."""
        self._moved = time.monotonic()

    @contextmanager
    def at_work(self, phase: str) -> Iterator[None]:
        """The main loop does one call."""
        self.phase = phase
        self.progress()
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False
            self.steps += 1
            self.phase = READY

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The main loop waits for another place, in the middle of a call; that is no standstill of its own."""
        was, self._at_work = self._at_work, False
        try:
            yield
        finally:
            self.progress()
            self._at_work = was


class Beat:
    """Calls `beat` from a thread of its own until it is stopped: when it is asked to, and twice a second at least."""

    def __init__(self, beat: Callable[[], None], name: str) -> None:
        self._beat = beat
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def soon(self) -> None:
        """Have the next beat now. A stage beats when the one after it does, so that news goes round without a rest."""
        self._due.set()

    def stop(self) -> None:
        """End; waits for a beat under way."""
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
    """How this process fares now."""
    told = link_status(link)
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
        receive_s=pulse.receive_s,
        rtt_ms=told.rtt_ms,
        link=told,
    )


def link_status(link: LinkSender) -> LinkStatus:
    """How the link fares that this process sends on."""
    tally = link.tally
    return LinkStatus(
        peer=link.peer,
        endpoint=link.endpoint,
        state=link.state,
        epoch=link.party.epoch,
        rtt_ms=None if tally.rtt_s is None else tally.rtt_s * 1000,
        queue=link.queue,
        bytes_sent=tally.bytes_sent,
        bytes_received=tally.bytes_taken,
        messages_sent=tally.messages_sent,
        messages_received=tally.messages_taken,
        refused=link.refused,
        last_error=link.last_error,
        sessions=tally.sessions,
        wait_s=tally.wait_s,
        send_s=tally.send_s,
        rtt_counts=tuple(tally.rtt_counts),
        rtt_sum_s=tally.rtt_sum_s,
        knocks=link.knocks,
    )
