# SPDX-License-Identifier: Apache-2.0
"""The next lines of an input that are not done, a bounded number of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zpptool.batch.arrangement import arranged
from zpptool.batch.done_lines import DoneLines
from zpptool.batch.request_line import BadLine, RawLine, RequestLine, parse_line

WINDOW_LINES = 4096
WINDOW_BYTES = 32 << 20


class Windows:
    """Reads windows of lines.

    Attributes:
        exhausted: whether the input has no more lines.

    Args:
        lines: all lines of the input.
        done: the lines to leave out.
        ordered: whether a window keeps the input's order; it is arranged otherwise.
    """

    def __init__(self, lines: Iterable[RawLine], done: DoneLines, *, ordered: bool) -> None:
        self._lines: Iterator[RawLine] = iter(lines)
        self._done, self._ordered = done, ordered
        self.exhausted = False

    def next(self) -> tuple[list[RequestLine], list[BadLine]]:
        """The requests of the next window in the order in which to send them, and its lines that are none."""
        requests: list[RequestLine] = []
        bad: list[BadLine] = []
        nbytes = 0
        while len(requests) + len(bad) < WINDOW_LINES and nbytes < WINDOW_BYTES:
            raw = next(self._lines, None)
            if raw is None:
                self.exhausted = True
                break
            if raw.number in self._done:
                continue
            nbytes += len(raw.content or b"")
            parsed = parse_line(raw)
            if isinstance(parsed, BadLine):
                bad.append(parsed)
            else:
                requests.append(parsed)
        return requests if self._ordered else arranged(requests), bad
