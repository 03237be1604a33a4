# SPDX-License-Identifier: Apache-2.0
"""Converts tokens to text as they are generated. Text that was emitted is never changed.

Text is held back while its last character may be incomplete (one character may take several tokens), and while it may
be the beginning of a stop string. Together, the pieces are the text of all tokens, up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder returns for the bytes of an incomplete character."""
CONTEXT_TOKENS = 6
"""The number of prompt tokens that are decoded before the first new ones: a decoder drops the space that begins a
text."""


class TextStream:
    """The text of one sequence's new tokens.

    Attributes:
        stopped_by: the stop string that has ended the text; None before.

    Args:
        decode: converts token ids to text.
        prompt: the token ids before the new ones.
        stops: the text ends before the first of these.
        keep_stop: the text ends after it instead.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        *,
        keep_stop: bool = False,
    ) -> None:
        self._decode = decode
        self._stops = stops
        self._keep_stop = keep_stop
        self._token_ids = list(prompt[-CONTEXT_TOKENS:])
        self._decoded_from, self._emitted_to = 0, len(self._token_ids)
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that is final with one more token; may be empty. Unless it may stop, stop strings are not heeded."""
        self._token_ids.append(token_id)
        new = self._new_text()
        if not new or new.endswith(INCOMPLETE):
            return ""
        self._decoded_from, self._emitted_to = self._emitted_to, len(self._token_ids)
        if not may_stop:
            return new
        return self._release(new, at_end=False)

    def end(self) -> str:
        """The text that was held back, after the last token."""
        return self._release(self._new_text(), at_end=True)

    def _new_text(self) -> str:
        """The text of the tokens that were not emitted yet, decoded after those that were."""
        before = self._decode(self._token_ids[self._decoded_from : self._emitted_to])
        now = self._decode(self._token_ids[self._decoded_from :])
        return now[_common(before, now) :]

    def _release(self, new: str, *, at_end: bool) -> str:
        text = self._held + new
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda item: item[0])
            self._held = ""
            return text[: place + len(self.stopped_by)] if self._keep_stop else text[:place]
        keep = 0 if at_end else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _common(one: str, other: str) -> int:
    """The length of the common prefix."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`, and shorter than it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
