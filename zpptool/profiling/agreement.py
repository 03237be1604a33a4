# SPDX-License-Identifier: Apache-2.0
"""Whether a measurement would come out the same again (pure).

The value of an entry is the median of many rounds. It is stable if another profile of the same device would agree with
it within `TOLERANCE`: the spread of the rounds has to be small enough for their number, and the first half of the
rounds has to agree with the second, which shows a drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

TOLERANCE = 0.05
"""How far two profiles may differ, as a share of the value."""
FEWEST_ROUNDS = 6
"""With fewer rounds nothing is said to be stable."""
_CONFIDENCE = 2.0
"""Of two profiles, 95 in 100 differ by less than so many standard deviations of their difference."""
_NORMAL_MAD = 1.4826
"""Standard deviations of a normal distribution for each median absolute deviation."""
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""The standard error of a median is so many times that of a mean."""


def is_stable(rounds: Sequence[float]) -> bool:
    """Whether the median of these rounds would come out the same again, within the tolerance."""
    if len(rounds) < FEWEST_ROUNDS:
        return False
    value = median(rounds)
    if value <= 0:
        return False
    deviation = _NORMAL_MAD * median(abs(one - value) for one in rounds)
    error = math.sqrt(2) * _MEDIAN_ERROR * deviation / math.sqrt(len(rounds))
    half = len(rounds) // 2
    drift = abs(median(rounds[:half]) - median(rounds[half:]))
    return _CONFIDENCE * error <= TOLERANCE * value and drift <= TOLERANCE * value


def agree(one: float, other: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two values differ by at most the tolerance, as a share of the smaller one."""
    return abs(one - other) <= tolerance * min(abs(one), abs(other))
