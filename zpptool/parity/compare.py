# SPDX-License-Identifier: Apache-2.0
"""Parity: are the pipeline's tokens the unsplit model's? Pure; who generated them is asked elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zpptool.net.openai_client import Generation


class Verdict(StrEnum):
    """What a trial found."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    ERROR = "error"




@dataclass(frozen=True)
class PromptParity:
    """One prompt, answered twice.

    Attributes:
        prompt: its text.
        prompt_tokens: how many tokens it has.
        reference: the unsplit model's answer.
        pipeline: the pipeline's answer.
    """

    prompt: str
    prompt_tokens: int
    reference: Generation
    pipeline: Generation

    @property
    def first_difference(self) -> int | None:
        """The place of the first token that differs, or that only one of the two has, from 0; None for none."""
        return first_difference(self.reference.token_ids, self.pipeline.token_ids)

    @property
    def identical(self) -> bool:
        return self.first_difference is None


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """The first place at which two sequences differ, the end of the shorter one included; None if they are equal."""
    for place, (ours, theirs) in enumerate(zip_longest(expected, got)):
        if ours != theirs:
            return place
    return None


def verdict_of(results: Sequence[PromptParity]) -> Verdict:
    """`identical` only when there is at least one prompt and every one's tokens are."""
    if results and all(result.identical for result in results):
        return Verdict.IDENTICAL
    return Verdict.DIFFERENT if results else Verdict.ERROR
