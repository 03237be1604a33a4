# SPDX-License-Identifier: Apache-2.0
"""Tokens to text while they come: what was given out is never taken back.

Text is held back while its last character may be incomplete (one character may take several tokens), and while it may
be the beginning of a stop string. Put together, the pieces are the text of all tokens, up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder makes of the bytes of a character that is not complete."""
CONTEXT_TOKENS = 6
"""How many tokens of the prompt are decoded before the first new ones: a decoder drops the space that begins a text."""


class TextStream:
    """The text of one sequence's new tokens.

    Attributes:
        stopped_by: the stop string that the text has come to, None until then.

    Args:
        decode: token ids to text.
        prompt: the token ids before the new ones.
        stops: text ends before the first of these.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._token_ids = list(prompt[-CONTEXT_TOKENS:])
        self._decoded_from, self._given_to = 0, len(self._token_ids)
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, token_id: int) -> str:
        """The text that is certain with one more token; may be empty."""
        self._token_ids.append(token_id)
        new = self._new_text()
        if not new or new.endswith(INCOMPLETE):
            return ""
        self._decoded_from, self._given_to = self._given_to, len(self._token_ids)
        return self._release(new, at_end=False)

    def end(self) -> str:
        """What was held back, when there are no more tokens."""
        return self._release(self._new_text(), at_end=True)

    def _new_text(self) -> str:
        """The text of the tokens that were not given out yet, seen behind those that were."""
        before = self._decode(self._token_ids[self._decoded_from : self._given_to])
        now = self._decode(self._token_ids[self._decoded_from :])
        return now[_common(before, now) :]

    def _release(self, new: str, *, at_end: bool) -> str:
        text = self._held + new
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda item: item[0])
            self._held = ""
            return text[:place]
        keep = 0 if at_end else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
