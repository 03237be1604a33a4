# SPDX-License-Identifier: Apache-2.0
"""How far a run has come: counts, tokens per second, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zpptool.batch.journal import Totals

WINDOW_S = 60.0
"""Rates are those of the last minute."""
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        done: results in the output.
        failed: results in the errors.
        total: lines of the input.
        in_flight: lines that are being computed.
        tokens_per_s: generated tokens per second; None while it is unknown.
        left_s: seconds until the end at the present rate of lines; None while it is unknown.
    """

    done: int
    failed: int
    total: int
    in_flight: int
    tokens_per_s: float | None
    left_s: float | None

    def shown(self) -> str:
        """One line for people."""
        finished = self.done + self.failed
        share = f" ({100 * finished // self.total}%)" if self.total else ""
        rate = f", {self.tokens_per_s:.1f} tokens/s" if self.tokens_per_s is not None else ""
        left = f", {duration(self.left_s)} left" if self.left_s is not None else ""
        return f"{finished} of {self.total} lines{share}, {self.failed} failed, {self.in_flight} in flight{rate}{left}"

    def as_json(self) -> dict[str, Any]:
        """As a JSON object, for the status."""
        return {
            "done": self.done,
            "failed": self.failed,
            "total": self.total,
            "in_flight": self.in_flight,
            "tokens_per_s": self.tokens_per_s,
            "left_s": self.left_s,
        }


class ProgressMeter:
    """Measures the rates of one start of a run.

    Args:
        total: lines of the input.
        totals: counts over all starts of the run; read now and at every look.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, totals: Totals, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._totals, self._clock = total, totals, clock
        self._samples: deque[tuple[float, int, int]] = deque([self._sample()])

    def look(self, in_flight: int) -> Progress:
        """How far the run has come now.

        Args:
            in_flight: lines that are being computed.
        """
        now = self._sample()
        if now[0] - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append(now)
        while len(self._samples) > 1 and now[0] - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        took_s = now[0] - self._samples[0][0]
        lines, tokens = now[1] - self._samples[0][1], now[2] - self._samples[0][2]
        known = took_s > 0 and lines > 0
        left = self._total - now[1]
        return Progress(
            self._totals.done,
            self._totals.failed,
            self._total,
            in_flight,
            tokens / took_s if known else None,
            left * took_s / lines if known else None,
        )

    def _sample(self) -> tuple[float, int, int]:
        """The time, the lines that have a result, and the generated tokens."""
        return self._clock(), self._totals.done + self._totals.failed, self._totals.answer_tokens


def duration(seconds: float) -> str:
    """A duration for people: `42 s`, `7 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
