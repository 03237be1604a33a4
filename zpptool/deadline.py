# SPDX-License-Identifier: Apache-2.0
"""The deadline of a wait. Every wait of a link has one, so a timeout is a finite number of seconds."""

from __future__ import annotations

import math
import time

from zpptool.errors import usage_error


class Deadline:
    """A moment `timeout_s` seconds from now, on the monotonic clock.

    Attributes:
        timeout_s: the timeout it was made from.

    Raises:
        ZppError: the timeout is negative, infinite or not a number (exit 2).
    """

    __slots__ = ("_end", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        if not 0 <= timeout_s < math.inf:
            raise usage_error(f"A timeout is a finite number of seconds from 0 up, not {timeout_s}.")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())

    def remaining_ms(self) -> int:
        """Whole milliseconds left, rounded up, in the range that a poll call accepts."""
        return min(math.ceil(self.remaining_s() * 1000), 2**31 - 1)
