# SPDX-License-Identifier: Apache-2.0
"""Telling of what strangers do without letting them fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable


class SparingNote:
    """Passes on one line in `every_s` seconds, with a count of those kept back since the one before.

    Args:
        note: takes a line; None drops them all.
    """

    def __init__(self, note: Callable[[str], None] | None, every_s: float = 1.0) -> None:
        self._note = note
        self._every_s = every_s
        self._next = float("-inf")
        self._kept_back = 0

    def __call__(self, text: str) -> None:
        """Pass on a line, or count it."""
        now = time.monotonic()
        if self._note is None:
            return
        if now < self._next:
            self._kept_back += 1
            return
        self._next = now + self._every_s
        more = f" (and {self._kept_back} more before it)" if self._kept_back else ""
        self._kept_back = 0
        self._note(text + more)
