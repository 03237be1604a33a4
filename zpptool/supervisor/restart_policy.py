# SPDX-License-Identifier: Apache-2.0
"""Whether a process that has ended is to be started again, and when: a pure rule.

The invariant: one that ends by a decision (told to stop, refused, or because the whole pipeline is given up) is not;
one that was killed or has failed is, unless it does so again and again before it has stood; and so is one that has left
because it was asked to, which is no failure.
"""

from __future__ import annotations

from zpptool.errors import ExitCode

MOST_IN_A_ROW = 5
"""So many lives in a row may end before the process has stood."""
LONGEST_REST_S = 16.0


class RestartPolicy:
    """The lives of the processes of one stage, by name."""

    def __init__(self) -> None:
        self._in_vain: dict[str, int] = {}

    def rest_s(self, name: str, code: int, *, stood: bool) -> float | None:
        """How long to wait before the next life; None where there is to be none.

        Args:
            name: of the process.
            code: what it ended with, as `subprocess` tells it.
            stood: whether it had come as far as doing its work.
        """
        if code == ExitCode.AGAIN:
            return 0.0
        if code >= 0 and code != ExitCode.FAILURE:
            return None
        in_vain = self._in_vain[name] = 0 if stood else self._in_vain.get(name, 0) + 1
        if in_vain > MOST_IN_A_ROW:
            return None
        return min(2.0 ** (in_vain - 2), LONGEST_REST_S) if in_vain > 1 else 0.0
