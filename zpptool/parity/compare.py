# SPDX-License-Identifier: Apache-2.0
"""Parity: compares the tokens of the pipeline with those of the unsplit model. Pure functions on finished answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zpptool.net.openai_client import Generation


class Verdict(StrEnum):
    """The outcome of a trial."""

    IDENTICAL = "identical"
    WITHIN_TOLERANCE = "within tolerance"
    """The tokens are equal, and bits could not be compared: something that they depend on was not the same."""
    OTHER_BITS = "same tokens, other bits"
    DIFFERENT = "different"
    ERROR = "error"


@dataclass(frozen=True)
class PromptParity:
    """The two answers to one prompt.

    Attributes:
        prompt: its text, shortened if it is a long one.
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
        """The index of the first token that differs or that only one answer has; None where they are equal."""
        return first_difference(self.reference.token_ids, self.pipeline.token_ids)

    @property
    def identical(self) -> bool:
        """Whether both answers have the same tokens."""
        return self.first_difference is None


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """The index of the first difference; the length of the shorter sequence if it is a prefix of the other; None if
    they are equal."""
    for index, (expected_token, token) in enumerate(zip_longest(expected, got)):
        if expected_token != token:
            return index
    return None


def verdict_of(results: Sequence[PromptParity]) -> Verdict:
    """`identical` only if there is at least one prompt and all have identical tokens; `error` for no prompt."""
    if results and all(result.identical for result in results):
        return Verdict.IDENTICAL
    return Verdict.DIFFERENT if results else Verdict.ERROR
