# SPDX-License-Identifier: Apache-2.0
"""Decides which of two ways of batching is faster, by measuring both now and then. Pure but for the clock.

To divide the running sequences among the steps in flight keeps all stages busy. But every step has a fixed cost, and
more and smaller steps pay it more often. Which weighs more depends on the model, the machine and what else runs on it.
So the tokens of each way are counted over a short time, the faster way is kept, and the other is tried again after a
while. A measurement holds for about the same number of running sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from zpptool.engines.vllm.core.measured_choice import MeasuredChoice

ROUNDS = 8
"""How many tokens every running sequence gets in one measurement."""
MARGIN = 1.03
"""Dividing must be faster by this factor: it doubles the work outside the stages."""


class BatchingPolicy:
    """Chooses between divided steps (True) and whole steps (False).

    Args:
        in_flight: the number of steps in flight at once.
        clock: returns seconds.
    """

    def __init__(self, in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self._measured: dict[int, MeasuredChoice] = {}
        self._size = 0
        self._divide = True
        self._steps_to_skip = 0
        self._steps_left = 0
        self._tokens = 0
        self._began = 0.0
        self._begin()

    def shares(self, running: int) -> bool:
        """Whether to divide this number of running sequences now."""
        size = running.bit_length()  # a measurement is taken to hold from one power of two to the next
        if size != self._size:
            self._size = size
            self._divide = self._measured.setdefault(size, MeasuredChoice(MARGIN)).divide
            self._begin()
        return self._divide

    def disturbed(self) -> None:
        """Discard the measurement: something else than the next tokens of running sequences was computed."""
        self._begin()

    def step_done(self, tokens: int) -> None:
        """Count the tokens of a step that has returned."""
        if not tokens or not self._size:
            return
        if self._steps_to_skip:
            self._steps_to_skip -= 1
            self._began = self._clock()
            return
        self._tokens += tokens
        self._steps_left -= 1
        if self._steps_left == 0:
            self._record(self._tokens / max(self._clock() - self._began, 1e-6))

    def _begin(self) -> None:
        """Begin a measurement. The steps in flight are skipped: they were made in another way, or for others."""
        self._steps_to_skip = self._in_flight
        self._steps_left = ROUNDS * (self._in_flight if self._divide else 1)
        self._tokens = 0

    def _record(self, rate: float) -> None:
        choice = self._measured[self._size]
        choice.record(self._divide, rate)
        self._divide = choice.next
        self._begin()
