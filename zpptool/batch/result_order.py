# SPDX-License-Identifier: Apache-2.0
"""Results in the order in which they are to be written: as they come, or in the input's order. Pure."""

from __future__ import annotations

from zpptool.batch.done_lines import DoneLines
from zpptool.batch.result_line import Result

MAX_HELD = 16384
MAX_HELD_BYTES = 64 << 20


class ResultOrder:
    """Holds results back until those of all earlier lines are there.

    Args:
        done: the lines that have been written; those of an earlier start are never held back for.
        ordered: whether the order is the input's; nothing is held back otherwise.
    """

    def __init__(self, done: DoneLines, *, ordered: bool) -> None:
        self._done, self._ordered = done, ordered
        self._held: dict[int, Result] = {}
        self._bytes = 0
        self._next = 1

    @property
    def is_full(self) -> bool:
        """Whether so much is held back that no further line is to be begun."""
        return len(self._held) >= MAX_HELD or self._bytes >= MAX_HELD_BYTES

    def add(self, result: Result) -> list[Result]:
        """Add a result; return those that are to be written now."""
        if not self._ordered:
            return [result]
        self._held[result.line.number] = result
        self._bytes += len(result.content)
        ready = []
        while self._next in self._held or self._next in self._done:
            found = self._held.pop(self._next, None)
            if found is not None:
                self._bytes -= len(found.content)
                ready.append(found)
            self._next += 1
        return ready
