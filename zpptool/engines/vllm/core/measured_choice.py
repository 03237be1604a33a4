# SPDX-License-Identifier: Apache-2.0
"""Keeps the faster of two ways of working: both are measured, and the slower one again now and then. Pure."""

from __future__ import annotations

TRY_AGAIN = 24
"""The number of measurements of the faster way after which the other is measured once."""


class MeasuredChoice:
    """Chooses between dividing (True) and not dividing (False).

    Args:
        margin: dividing must be faster by this factor.

    Attributes:
        next: the way to measure next: the faster one, or the other where it was never measured or is due again.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._rates: dict[bool, float] = {}
        self._trials = 0
        self.next = True

    @property
    def divide(self) -> bool:
        """Whether dividing is the faster way, by the last measurement of each; what was not measured has a rate of 0,
        and dividing is preferred when nothing was."""
        return self._rates.get(True, 0.0) >= self._rates.get(False, 0.0) * self._margin

    def record(self, divided: bool, rate: float) -> None:
        """Take a measurement into account.

        Args:
            divided: the way that was measured.
            rate: tokens per second.
        """
        self._rates[divided] = rate
        self._trials += 1
        self.next = self.divide
        if (not self.next) not in self._rates or self._trials >= TRY_AGAIN:
            self._trials = 0
            self.next = not self.next
