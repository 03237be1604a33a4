# SPDX-License-Identifier: Apache-2.0
"""Logging what a remote peer can cause, at a limited rate, so that no peer can fill the log."""

from __future__ import annotations

import time

from zpptool.log import PlaceLogger


class RateLimitedLog:
    """Logs a few warnings at once, then one in `every_s` seconds, with the number of those suppressed before it.

    Args:
        logger: writes the records.
        every_s: seconds between two records.
        at_once: how many records may follow each other after a pause.
    """

    def __init__(self, logger: PlaceLogger, every_s: float = 1.0, at_once: int = 8) -> None:
        self._logger = logger
        self._every_s = every_s
        self._ahead_s = every_s * (at_once - 1)
        self._next = float("-inf")
        self._suppressed = 0

    def warning(self, text: str) -> None:
        """Log a warning, or count it as suppressed."""
        now = time.monotonic()
        if now < self._next - self._ahead_s:
            self._suppressed += 1
            return
        self._next = max(self._next, now) + self._every_s
        more = f" (and {self._suppressed} more before it)" if self._suppressed else ""
        self._suppressed = 0
        self._logger.warning("%s", text + more)
