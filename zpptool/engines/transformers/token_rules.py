# SPDX-License-Identifier: Apache-2.0
"""Which tokens an answer may have: rules that a request sets, applied to the logits before a token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRules:
    """The rules of one sequence. Every token id is below the size of the vocabulary.

    They are applied in vLLM's order: `allowed`, `banned`, `min_tokens`, `bias` (`vllm/v1/sample/sampler.py`).

    Attributes:
        bias: added to the logits of these tokens.
        allowed: only these tokens are chosen; empty for all.
        banned: sequences of tokens, none of which appears in the answer: the last token of one is not chosen after the
            others.
        min_tokens: before the answer has as many tokens, none of `end_ids` is chosen.
        end_ids: the tokens that end an answer.
    """

    bias: dict[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] = ()
    banned: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.bias or self.allowed or self.banned or self.min_tokens)

    def apply(self, logits: Tensor, answer: Sequence[int]) -> Tensor:
        """A copy of the logits in which the tokens that may not be chosen have minus infinity.

        Args:
            logits: [vocabulary], float32.
            answer: the tokens of the answer so far.
        """
        logits = logits.clone()
        if self.allowed:
            refused = torch.ones_like(logits, dtype=torch.bool)
            refused[list(self.allowed)] = False
            logits[refused] = -torch.inf
        _exclude(logits, [banned[-1] for banned in self.banned if _is_due(banned, answer)])
        if len(answer) < self.min_tokens:
            _exclude(logits, self.end_ids)
        for token, bias in self.bias.items():
            logits[token] += bias
        return logits


def _is_due(banned: tuple[int, ...], answer: Sequence[int]) -> bool:
    """Whether the answer ends with all of `banned` but its last token."""
    before = list(banned[:-1])
    return len(before) <= len(answer) and list(answer[len(answer) - len(before) :]) == before


def _exclude(logits: Tensor, tokens: Sequence[int]) -> None:
    """Exclude tokens in place, unless that would leave none: then a token has to be chosen all the same."""
    if not tokens:
        return
    excluded = logits.clone()
    excluded[list(tokens)] = -torch.inf
    if not bool(excluded.isneginf().all()):
        logits.copy_(excluded)
