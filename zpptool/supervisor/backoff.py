# SPDX-License-Identifier: Apache-2.0
"""How long to wait after failures in a row, and after how many of them to give up: a pure rule.

The invariant: `max_failures` failures in a row are the limit everywhere. The last of them is not followed by a retry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_DOUBLINGS = 64


@dataclass(frozen=True)
class Backoff:
    """A delay that doubles with each failure in a row, and the number of failures that ends the retries.

    Attributes:
        max_failures: after this many failures in a row there are no more retries; 0 counts as 1.
        first_s: the first delay, in seconds.
        longest_s: the longest delay, in seconds.
        immediate: how many failures are retried without a delay, before the first one.
    """

    max_failures: int
    first_s: float
    longest_s: float = math.inf
    immediate: int = 0

    def is_exhausted(self, failures: int) -> bool:
        """Whether there are no more retries after this many failures in a row."""
        return failures >= max(self.max_failures, 1)

    def delay_s(self, failures: int) -> float:
        """Seconds to wait before the retry after this many failures in a row."""
        delayed = failures - self.immediate
        if delayed <= 0:
            return 0.0
        return min(self.first_s * 2.0 ** min(delayed - 1, _MAX_DOUBLINGS), self.longest_s)
