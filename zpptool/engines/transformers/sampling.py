# SPDX-License-Identifier: Apache-2.0
"""Chooses the next token from the logits, reproducibly.

A `Sampler` belongs to one sequence and has a random stream of its own, so its choices do not depend on which other
sequences are in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zpptool.errors import usage_error


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token and ignores the other parameters.
        top_k: draw among the `top_k` likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens whose probabilities add up to at least this; 1 for all.
        seed: of the sequence's random stream.

    Raises:
        ZppError: (USAGE) a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise usage_error(f"the temperature {self.temperature} is not a number from 0 up")
        if self.top_k < 0:
            raise usage_error(f"top_k {self.top_k} is negative", "Use 0 for no limit.")
        if not 0 < self.top_p <= 1:
            raise usage_error(f"top_p {self.top_p} is not above 0 and at most 1")


class Sampler:
    """Chooses the tokens of one sequence, one after the other."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = torch.Generator().manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> int:
        """The next token of the sequence.

        Args:
            logits: [vocabulary], any dtype and device; the choice is made in float32 on the CPU.
        """
        logits = logits.to(device="cpu", dtype=torch.float32)
        if self._params.temperature == 0:
            return int(logits.argmax())
        probabilities, tokens = (logits / self._params.temperature).softmax(-1).sort(descending=True, stable=True)
        if self._params.top_k:
            probabilities = probabilities[: self._params.top_k]
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < self._params.top_p * probabilities.sum())
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._random)])
