# SPDX-License-Identifier: Apache-2.0
"""Chooses the next token from the logits, reproducibly.

A `Sampler` belongs to one sequence and has a random stream of its own, so its choices do not depend on which other
sequences are in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from zpptool.engines.transformers.token_rules import TokenRules
from zpptool.errors import usage_error

GREEDY_BELOW = 1e-5
"""A temperature below this is 0, as in vLLM: the likeliest token is taken, since a division by it could overflow."""
MAX_PENALTY = 2.0
"""The limit, in both directions, of the presence and frequency penalties, as with OpenAI."""
MAX_REPETITION_PENALTY = 1000.0
"""The repetition penalty lies between this and its reciprocal, so that no logit overflows."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The log probabilities at one position, of the model's own distribution: before penalties and temperature.

    Attributes:
        chosen: of the token that was chosen.
        top: the likeliest tokens and their log probabilities, in descending order.
    """

    chosen: float
    top: list[tuple[int, float]]


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """A token that was chosen.

    Attributes:
        token: its id.
        logprobs: None where they were not requested.
    """

    token: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, and `top_k`, `top_p`, `min_p` and `seed`
            then have no effect.
        top_k: draw among the `top_k` likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens whose probabilities add up to at least this; 1 for all.
        seed: of the sequence's random stream.
        min_p: draw among the tokens with at least this share of the likeliest token's probability; 0 for all.
        presence_penalty: subtracted from the logit of every token of the answer so far.
        frequency_penalty: subtracted once for each time that the token is in the answer so far.
        repetition_penalty: divides the positive logits of the tokens of prompt and answer, multiplies the negative
            ones; 1 for none.
        logprobs: of how many of the likeliest tokens log probabilities are returned, beside that of the chosen token;
            None for no log probabilities.
        rules: which tokens may be chosen; None for all.

    Raises:
        ZppError: (USAGE) a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    rules: TokenRules | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise usage_error(f"the temperature {self.temperature} is not a number from 0 up")
        if self.top_k < 0:
            raise usage_error(f"top_k {self.top_k} is negative", "Use 0 for no limit.")
        if not 0 < self.top_p <= 1:
            raise usage_error(f"top_p {self.top_p} is not above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise usage_error(f"min_p {self.min_p} is not between 0 and 1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= getattr(self, name) <= MAX_PENALTY:
                raise usage_error(f"{name} {getattr(self, name)} is not between -{MAX_PENALTY:g} and {MAX_PENALTY:g}")
        if not 1 / MAX_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise usage_error(
                f"repetition_penalty {self.repetition_penalty} is not between {1 / MAX_REPETITION_PENALTY:g} and"
                f" {MAX_REPETITION_PENALTY:g}",
                "Use 1 for no penalty.",
            )
        if self.logprobs is not None and self.logprobs < 0:
            raise usage_error(f"logprobs {self.logprobs} is negative")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, after penalties."""
        return self.temperature < GREEDY_BELOW

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is all that is requested: no penalties or rules, no log probabilities."""
        return self.is_greedy and not self.depends_on_tokens and self.logprobs is None

    @property
    def depends_on_tokens(self) -> bool:
        """Whether a choice depends on which tokens there are, beside their logits: by penalties or by rules."""
        return self.has_penalties or self.rules is not None

    @property
    def has_penalties(self) -> bool:
        """Whether a choice depends on which tokens were chosen before it."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    Args:
        params: how to choose.
        prompt: the sequence's prompt, token ids; only the repetition penalty takes it into account.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        self._params = params
        self._random = torch.Generator().manual_seed(params.seed)
        self._seen = set(prompt) if params.repetition_penalty != 1 else set()
        self._answer: list[int] = []
        self._counts: Counter[int] = Counter()

    def __call__(self, logits: Tensor) -> int:
        """The next token of the sequence.

        Args:
            logits: [vocabulary], any dtype and device; the choice is made in float32 on the CPU.
        """
        return self._draw(_on_cpu(logits))

    def choose(self, logits: Tensor) -> Choice:
        """As calling it, with the log probabilities that were requested."""
        logits = _on_cpu(logits)
        token = self._draw(logits)
        if self._params.logprobs is None:
            return Choice(token)
        return Choice(token, _logprobs(logits, token, self._params.logprobs))

    def _draw(self, logits: Tensor) -> int:
        if not self._params.depends_on_tokens:
            return self._draw_from(logits)
        if self._params.rules is not None:
            logits = self._params.rules.apply(logits, self._answer)
        token = self._draw_from(self._penalised(logits) if self._params.has_penalties else logits)
        self._answer.append(token)
        self._counts[token] += 1
        self._seen.add(token)
        return token

    def _draw_from(self, logits: Tensor) -> int:
        if self._params.is_greedy:
            return int(logits.argmax())
        probabilities, tokens = (logits / self._params.temperature).softmax(-1).sort(descending=True, stable=True)
        if self._params.min_p:
            probabilities = probabilities * (probabilities >= self._params.min_p * probabilities[0])
        if self._params.top_k:
            probabilities = probabilities[: self._params.top_k]
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < self._params.top_p * probabilities.sum())
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._random)])

    def _penalised(self, logits: Tensor) -> Tensor:
        """A copy of the logits with the penalties, in vLLM's order: repetition, frequency, presence."""
        logits = logits.clone()
        if self._params.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._seen), dtype=torch.long)
            values, penalty = logits[seen], self._params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            answered = torch.tensor(list(self._counts), dtype=torch.long)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            logits[answered] -= self._params.frequency_penalty * counts + self._params.presence_penalty
        return logits


def _on_cpu(logits: Tensor) -> Tensor:
    return logits.to(device="cpu", dtype=torch.float32)


def _logprobs(logits: Tensor, token: int, num_top: int) -> TokenLogprobs:
    values = logits.log_softmax(-1)
    top, tokens = values.topk(min(num_top, len(values)))
    return TokenLogprobs(float(values[token]), list(zip(tokens.tolist(), top.tolist(), strict=True)))
