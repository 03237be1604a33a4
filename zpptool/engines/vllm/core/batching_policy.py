# SPDX-License-Identifier: Apache-2.0
"""Which of two ways to make steps is the faster one here, told by trying both now and then. Pure but for the clock.

To share running sequences out among the steps in flight keeps all stages busy; but a step costs something whatever it
holds, and more and smaller ones cost more of it. Which weighs more depends on the model, the machine and what else runs
on it. So the tokens of each way are counted over a short time, the better way is kept, and the other is tried again
after a while. What was learnt holds for about that many running sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

ROUNDS = 8
"""So many times all running sequences get a token in one trial of one way."""
TRY_AGAIN = 24
"""After so many trials of the better way the other is tried once."""
MARGIN = 1.03
"""Sharing out has to be faster by this: of all that is not a stage's work it costs twice as much."""


@dataclass(slots=True)
class _Known:
    """What is known of one number of sequences: tokens per second of each way, and the trials since the other way."""

    rates: dict[bool, float] = field(default_factory=dict)
    trials: int = 0


class BatchingPolicy:
    """Chooses between sharing out (True) and whole steps (False).

    Args:
        in_flight: how many steps are in flight at once.
        clock: seconds.
    """

    def __init__(self, in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._running = 0
        self._way = True
        self._settling = 0
        self._left = 0
        self._tokens = 0
        self._began = 0.0
        self._begin()

    def shares(self, running: int) -> bool:
        """Whether to share so many running sequences out now."""
        size = running.bit_length()  # from one power of two to the next, what was learnt is taken to hold
        if size != self._running:
            self._running = size
            self._way = self._best(self._known.setdefault(size, _Known()))
            self._begin()
        return self._way

    def disturbed(self) -> None:
        """Something else than the next token of running sequences was computed: what was counted says nothing."""
        self._begin()

    def step_done(self, tokens: int) -> None:
        """A step has come back with so many tokens."""
        if not tokens or not self._running:
            return
        if self._settling:
            self._settling -= 1
            self._began = self._clock()
            return
        self._tokens += tokens
        self._left -= 1
        if self._left == 0:
            self._learn(self._tokens / max(self._clock() - self._began, 1e-6))

    def _begin(self) -> None:
        """Begin a trial: what is in flight was made in another way, or for others, and is not counted."""
        self._settling = self._in_flight
        self._left = ROUNDS * (self._in_flight if self._way else 1)
        self._tokens = 0

    def _learn(self, rate: float) -> None:
        known = self._known[self._running]
        known.rates[self._way] = rate
        best = self._best(known)
        known.trials += 1
        if (not best) not in known.rates or known.trials >= TRY_AGAIN:
            known.trials = 0
            best = not best
        self._way = best
        self._begin()

    @staticmethod
    def _best(known: _Known) -> bool:
        return known.rates.get(True, 0.0) >= known.rates.get(False, 0.0) * MARGIN
