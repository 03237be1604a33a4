# SPDX-License-Identifier: Apache-2.0
"""Decides how many prompt tokens the next step takes: a share of them, or all, whichever was measured to be faster.

Prompts are computed in bursts. A burst begins when prompt tokens are scheduled while none are in flight, and ends when
the last of them has returned. Its rate is measured for its size, as `batching_policy.py` measures rounds of decoding.
Pure but for the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zpptool.engines.vllm.core.measured_choice import MeasuredChoice
from zpptool.engines.vllm.core.prefill_share import Prompt, chunk_tokens
from zpptool.engines.vllm.core.step_cost import StepCost

MARGIN = 1 / 1.03
"""Not dividing must be faster by this factor: dividing gives the first answers sooner."""
LONGEST_BURST = 256
"""Steps after which a burst that has not ended is measured all the same."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step in flight.

    Attributes:
        tokens, pairs: see `Cost`; `pairs` is None for a step whose time is of no interest.
        prefill: the prompt tokens among its tokens.
        at: when it was made.
    """

    tokens: int
    pairs: int | None
    prefill: int
    at: float


class PrefillPacer:
    """Shares the prompt tokens out over the steps in flight.

    Args:
        in_flight: the number of steps in flight at once.
        clock: returns seconds.
    """

    def __init__(self, in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self._cost = StepCost()
        self._steps: deque[_Step] = deque()
        self._prefill = Prompt(0, 0)
        self._returned_at = clock()
        self._choices: dict[int, MeasuredChoice] = {}
        self._size = 0
        self._began: float | None = None
        self._done = 0
        self._count = 0

    def chunk(self, prompts: Sequence[Prompt]) -> int | None:
        """How many of these prompt tokens the next step takes; None for as many as fit."""
        left = sum(prompt.tokens for prompt in prompts)
        self._size = max(self._size, (left + self._prefill.tokens + self._done).bit_length())
        if not self._divides():
            return None
        return chunk_tokens(prompts, self._prefill, self._cost.cost, self._in_flight)

    def step_made(self, tokens: int, pairs: int | None, prefill: int) -> None:
        """Count a step that is sent.

        Args:
            tokens: of the step; 0 for a step that is not computed.
            pairs: see `Cost`; None if the step is not to be measured.
            prefill: the prompt tokens among them.
        """
        now = self._clock()
        self._steps.append(_Step(tokens, pairs, prefill, now))
        if prefill:
            self._count_prefill(prefill, (pairs or 0) // max(tokens, 1))
            if self._began is None:
                self._began, self._done, self._count = now, 0, 0

    def step_done(self, *, lost: bool) -> None:
        """Count the oldest step: it has returned, or was lost with a stage."""
        step = self._steps.popleft()
        now = self._clock()
        if step.pairs is not None and step.at < self._returned_at and not lost:
            self._cost.measured(step.tokens, step.pairs, now - self._returned_at)
        if step.tokens:
            self._returned_at = now
        if step.prefill:
            self._count_prefill(-step.prefill, self._prefill.context)
            self._done += step.prefill
            self._count += 1
            if lost:
                self._end_burst()
            elif not self._prefill.tokens or self._count >= LONGEST_BURST:
                self._record(now)

    def _divides(self) -> bool:
        choice = self._choices.get(self._size)
        return choice is None or choice.next

    def _count_prefill(self, tokens: int, context: int) -> None:
        total = self._prefill.tokens + tokens
        self._prefill = Prompt(total, context if total else 0)

    def _record(self, now: float) -> None:
        if self._began is not None and self._size and (self._count > 1 or not self._divides()):
            rate = self._done / max(now - self._began, 1e-6)
            choice = self._choices.setdefault(self._size, MeasuredChoice(MARGIN))
            choice.record(choice.next, rate)
        self._end_burst()

    def _end_burst(self) -> None:
        self._began, self._size, self._done, self._count = None, 0, 0, 0
