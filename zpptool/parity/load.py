# SPDX-License-Identifier: Apache-2.0
"""The requests of a trial under load: many at once, of mixed lengths, that arrive and leave. Pure, and always the same.

Faults of a scheduler and of its caches show only among many requests, or at lengths that a short prompt does not reach.
"""

from __future__ import annotations

from collections.abc import Sequence

IN_FLIGHT = 24
"""How many requests of a load are in flight: as one ends, the next one arrives."""
LONGEST_PROMPT = 200
"""The most tokens of a prompt of a load."""


def load_prompts(passage: Sequence[int], count: int, room: int) -> list[list[int]]:
    """Different prompts of mixed lengths.

    Args:
        passage: token ids, of which each prompt is a part, repeated as needed.
        count: how many.
        room: the most tokens that a prompt may have.
    """
    longest = max(min(room, LONGEST_PROMPT), 1)
    prompts = []
    for number in range(count):
        start, length = number % len(passage), 1 + number * 61 % longest
        repeated = [*passage] * (2 + length // len(passage))
        prompts.append(repeated[start : start + length])
    return prompts


def answer_lengths(num_prompts: int, load: int, most: int) -> list[int]:
    """The number of tokens of each answer: `most`, but mixed lengths for the last `load` prompts."""
    return [most] * (num_prompts - load) + [1 + number * 7 % most for number in range(load)]
