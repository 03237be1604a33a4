# SPDX-License-Identifier: Apache-2.0
"""The order in which the lines of a window are sent. Pure.

Lines that begin alike are sent one after the other, so that an engine's prefix cache still holds what they share.
Groups of such lines are ordered by their longest line, longest first: a long line that begins last would keep the
pipeline almost empty at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zpptool.batch.request_line import RequestLine

PREFIX_CHARACTERS = 256
"""Lines whose first characters are the same, this many of them, are a group."""


def arranged(lines: Sequence[RequestLine]) -> list[RequestLine]:
    """The lines in the order in which to send them."""
    groups: dict[str, list[tuple[str, RequestLine]]] = {}
    for line in lines:
        text = beginning(line.body)
        groups.setdefault(text[:PREFIX_CHARACTERS], []).append((text, line))
    ordered = sorted(groups.values(), key=lambda group: (-max(expense(line) for _, line in group), group[0][1].number))
    return [line for group in ordered for _, line in sorted(group, key=lambda each: (each[0], each[1].number))]


def expense(line: RequestLine) -> int:
    """How long a line takes, roughly: the bytes of its content, and four for each token that it may generate."""
    limits = (line.body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    return len(line.content) + 4 * next((limit for limit in limits if isinstance(limit, int)), 0)


def beginning(body: dict[str, Any]) -> str:
    """The first characters of a prompt, as far as they decide which prompts begin alike."""
    text = ""
    for part in _texts(body):
        text += part
        if len(text) >= 4 * PREFIX_CHARACTERS:
            break
    return text[: 4 * PREFIX_CHARACTERS]


def _texts(value: Any) -> Iterator[str]:
    """The texts of a prompt, of messages, or of an input, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name in ("instructions", "messages", "prompt", "input", "role", "content", "text"):
            if name in value:
                yield from _texts(value[name])
    elif isinstance(value, list):
        if value and isinstance(value[0], int):
            yield ",".join(map(str, value[: 2 * PREFIX_CHARACTERS]))
        else:
            for item in value[:PREFIX_CHARACTERS]:
                yield from _texts(item)
