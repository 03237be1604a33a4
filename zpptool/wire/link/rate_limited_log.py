# SPDX-License-Identifier: Apache-2.0
"""Telling of what strangers do without letting them fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimitedLog:
    """Passes on a handful of lines at once, then one in `every_s` seconds, with a count of those kept back before it.

    Args:
        note: takes a line; None drops them all.
        at_once: how many lines may follow each other after a pause.
    """

    def __init__(self, note: Callable[[str], None] | None, every_s: float = 1.0, at_once: int = 8) -> None:
        self._note = note
        self._every_s = every_s
        self._ahead_s = every_s * (at_once - 1)
        self._next = float("-inf")
        self._kept_back = 0

    def __call__(self, text: str) -> None:
        """Pass on a line, or count it."""
        now = time.monotonic()
        if self._note is None:
            return
        if now < self._next - self._ahead_s:
            self._kept_back += 1
            return
        self._next = max(self._next, now) + self._every_s
        more = f" (and {self._kept_back} more before it)" if self._kept_back else ""
        self._kept_back = 0
        self._note(text + more)
