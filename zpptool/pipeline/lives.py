# SPDX-License-Identifier: Apache-2.0
"""Whether a process that has ended is to be started again, and when: a pure rule.

The invariant: one that ends by a decision (told to stop, refused, or because the whole pipeline is given up) is not;
one that was killed or has failed is, unless it does so again and again.
"""

from __future__ import annotations

from zpptool.errors import ExitCode

MOST_IN_A_ROW = 5
"""So many lives in a row may be short."""
SHORT_S = 60.0
LONGEST_REST_S = 16.0


class Lives:
    """The lives of the processes of one stage, by name."""

    def __init__(self) -> None:
        self._ends: dict[str, list[float]] = {}

    def rest_s(self, name: str, code: int, now: float) -> float | None:
        """How long to wait before the next life; None where there is to be none.

        Args:
            name: of the process.
            code: what it ended with, as `subprocess` tells it.
            now: on a clock that only goes forward, in seconds.
        """
        if code >= 0 and code != ExitCode.FAILURE:
            return None
        ends = self._ends.setdefault(name, [])
        if ends and now - ends[-1] > SHORT_S:
            ends.clear()
        ends.append(now)
        if len(ends) > MOST_IN_A_ROW:
            return None
        return 0.0 if len(ends) == 1 else min(2.0 ** (len(ends) - 2), LONGEST_REST_S)
