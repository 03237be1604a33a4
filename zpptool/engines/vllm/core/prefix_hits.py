# SPDX-License-Identifier: Apache-2.0
"""How much of the prompts that wait the prefix cache is expected to have, from those that were admitted last. Pure."""

from __future__ import annotations

WEIGHT = 0.2
"""Of the prompt that was admitted last, against all before it."""


class PrefixHits:
    """The share of prompt tokens that the cache had. It starts with none."""

    def __init__(self) -> None:
        self._share = 0.0

    def admitted(self, tokens: int, cached: int) -> None:
        """Count a prompt: its length, and how many of its tokens the cache had."""
        if tokens:
            self._share += WEIGHT * (min(cached / tokens, 1.0) - self._share)

    def expected_to_compute(self, tokens: int) -> int:
        """How many tokens of a prompt are likely to be left to compute."""
        return round(tokens * (1.0 - self._share))
