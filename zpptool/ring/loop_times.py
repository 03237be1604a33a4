# SPDX-License-Identifier: Apache-2.0
"""What a stage's main loop spends its time on: computing, waiting for tensors, for room to send, for the next step.

A stage that computes all the time is the one that limits the pipeline; what the others wait for shows why they do. On
a GPU the main loop computes while it launches kernels and while it waits for their results.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from zpptool.ring.status import BUSY_WINDOW_S


class Rest(Enum):
    """What a main loop waits for in the middle of a step."""

    RECEIVE = "tensors of the stage before"
    SEND = "room to send tensors"


class LoopTimes:
    """Seconds since the process started. Written by the main loop; `busy_share` is called by one other thread.

    Args:
        clock: returns seconds.

    Attributes:
        compute_s: steps, without the waits within them.
        receive_s: waits for the tensors of the stage before.
        send_s: waits for room to send tensors.
        idle_s: waits for the next step, since the first one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.compute_s = 0.0
        self.receive_s = 0.0
        self.send_s = 0.0
        self.idle_s = 0.0
        self._clock = clock
        self._began: float | None = None
        self._ended: float | None = None
        self._rested_s = 0.0
        self._samples: deque[tuple[float, float]] = deque()

    def begin(self, *, computes: bool) -> None:
        """A call begins; `computes` says that it is a step, and no loading or warming up."""
        now = self._clock()
        if computes and self._ended is not None:
            self.idle_s += now - self._ended
        self._ended = None
        self._began = now if computes else None
        self._rested_s = 0.0

    def end(self) -> None:
        """The call has ended."""
        if self._began is not None:
            self._ended = self._clock()
            self.compute_s += self._ended - self._began - self._rested_s
        self._began = None

    def rested(self, waited_for: Rest, seconds: float) -> None:
        """The main loop has waited in the middle of a call."""
        self._rested_s += seconds
        if waited_for is Rest.RECEIVE:
            self.receive_s += seconds
        else:
            self.send_s += seconds

    def busy_share(self) -> float | None:
        """The share of the last `BUSY_WINDOW_S` seconds that steps were computed, a step in progress included as far as
        it is known; None before the first step."""
        now, began = self._clock(), self._began
        computed = self.compute_s + (now - began - self._rested_s if began is not None else 0.0)
        self._samples.append((now, computed))
        while len(self._samples) > 1 and self._samples[1][0] <= now - BUSY_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if not computed or now <= since:
            return None
        return min(max((computed - before) / (now - since), 0.0), 1.0)
