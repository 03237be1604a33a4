# SPDX-License-Identifier: Apache-2.0
"""The time of a forward pass that was not measured exactly, from samples around it, with the range it lies in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from zpptool.planner.device_profile import Source, TimeSample

STABLE, UNSTABLE, OUTSIDE = 0.05, 0.15, 0.15
"""Parts by which a measured time may be off: two measurements agree within the first, or are marked unstable; a time
outside the grid is extrapolated, which adds the third."""
GIVEN, SPEC = 0.25, 1.0
"""Likewise for a number from a person, in both directions, and for one of a data sheet, which is only ever too good."""


class Seconds(NamedTuple):
    """A time, and the range in which it lies."""

    nominal: float
    low: float
    high: float

    def __add__(self, other: object) -> Seconds:
        if not isinstance(other, Seconds):
            return NotImplemented
        return Seconds(self.nominal + other.nominal, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Seconds:
        """The same work `factor` times."""
        return Seconds(self.nominal * factor, self.low * factor, self.high * factor)


NOTHING = Seconds(0.0, 0.0, 0.0)


def with_range(seconds: float, source: Source, *, stable: bool = True, outside: bool = False) -> Seconds:
    """A time with the range that its source leaves open."""
    if source is Source.SPEC:
        return Seconds(seconds, seconds, seconds * (1 + SPEC))
    off = GIVEN if source is Source.GIVEN else (STABLE if stable else UNSTABLE) + (OUTSIDE if outside else 0)
    return Seconds(seconds, seconds * (1 - off), seconds * (1 + off))


def time_of(samples: Sequence[TimeSample], tokens: float, context: float) -> Seconds:
    """The time of a forward pass of `tokens` tokens behind `context` cached ones each.

    Linear between samples, first in tokens, then in context. Beyond the largest sample the last slope goes on (from one
    sample alone, time in proportion to tokens), and below the smallest the time stays: a smaller step is hardly faster.

    Args:
        samples: of one part of the model; none give no time.
        tokens, context: the forward pass.
    """
    if not samples:
        return NOTHING
    contexts = sorted({sample.context for sample in samples})
    rows = [
        (float(at), along([(sample.tokens, sample.seconds) for sample in samples if sample.context == at], tokens))
        for at in contexts
    ]
    seconds = max(0.0, along(rows, context) if len(rows) > 1 else rows[0][1])
    largest = max(sample.tokens for sample in samples)
    smallest = min(sample.tokens for sample in samples)
    outside = not smallest <= tokens <= largest or not contexts[0] <= context <= contexts[-1]
    return with_range(
        seconds,
        _worst(sample.source for sample in samples),
        stable=all(sample.stable for sample in samples),
        outside=outside,
    )


def _worst(sources: Iterable[Source]) -> Source:
    return max(sources, key=[Source.MEASURED, Source.GIVEN, Source.SPEC].index)


def along(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at one place of a line through points; see `time_of` for what lies outside them."""
    points = sorted(dict(sorted(points)).items())
    if at <= points[0][0] or len(points) == 1:
        first = points[0]
        return first[1] * at / first[0] if len(points) == 1 and at > first[0] > 0 else first[1]
    right = next((number for number, (place, _value) in enumerate(points) if place >= at), len(points) - 1)
    (low, before), (high, after) = points[right - 1], points[right]
    slope = (after - before) / (high - low)
    return before + max(slope, 0.0 if at > high else slope) * (at - low)
