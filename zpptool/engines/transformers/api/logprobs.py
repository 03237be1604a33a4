# SPDX-License-Identifier: Apache-2.0
"""The JSON of log probabilities: OpenAI's object for completions, and the one for chats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from zpptool.engines.transformers.sampling import Choice

LEAST = -9999.0
"""Stands for the logarithm of 0, which JSON cannot express; vLLM's value."""

TokenText = Callable[[int], str]
"""Converts one token id to its text, special tokens too."""


def completion_logprobs(choices: Sequence[Choice], text_of: TokenText, offset: int) -> dict[str, Any]:
    """The object of a completion's choice.

    Args:
        choices: the tokens, at least one, with log probabilities.
        text_of: see `TokenText`.
        offset: the number of characters of the tokens before, from which `text_offset` counts.
    """
    tokens = [text_of(choice.token) for choice in choices]
    offsets = list(accumulate(map(len, tokens[:-1]), initial=offset))
    return {
        "text_offset": offsets,
        "token_logprobs": [_logprob_of(choice) for choice in choices],
        "tokens": tokens,
        "top_logprobs": [
            {text_of(token): logprob for token, logprob in reversed(_with_chosen(choice))} for choice in choices
        ],  # reversed: of several tokens with the same text, the likeliest counts
    }


def chat_logprobs(choices: Sequence[Choice], text_of: TokenText) -> dict[str, Any]:
    """The object of a chat's choice."""
    return {
        "content": [
            {
                **_entry(text_of(choice.token), _logprob_of(choice)),
                "top_logprobs": [_entry(text_of(token), logprob) for token, logprob in _top(choice)],
            }
            for choice in choices
        ]
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def _logprob_of(choice: Choice) -> float:
    assert choice.logprobs is not None
    return max(choice.logprobs.chosen, LEAST)


def _top(choice: Choice) -> list[tuple[int, float]]:
    assert choice.logprobs is not None
    return [(token, max(logprob, LEAST)) for token, logprob in choice.logprobs.top]


def _with_chosen(choice: Choice) -> list[tuple[int, float]]:
    """The likeliest tokens, and the chosen one where it is not among them."""
    top = _top(choice)
    return top if any(token == choice.token for token, _ in top) else [*top, (choice.token, _logprob_of(choice))]
