# SPDX-License-Identifier: Apache-2.0
"""How many prompt tokens a step takes, so that every stage has work while prompts are computed. Pure.

With `S` stages, `k` equal steps take as long as `k + S - 1` of them on one stage: the more steps, the sooner every
stage has work, but each step has a fixed cost. For work that takes `W` seconds on a stage beside the fixed cost `f` of
every step, `(k + S - 1) * (f + W / k)` is least at `k = sqrt((S - 1) * W / f)`. A step is then given prompt tokens
until it takes `W / k`, which are fewer the more earlier tokens they attend to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from zpptool.engines.vllm.core.step_cost import Cost

GRAIN = 16
"""A chunk that ends within a prompt is a multiple of this number of tokens, as kernels prefer."""
NEAR = 0.25
"""By how much a chunk may be larger or smaller than is best, to end where a prompt does."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is left of a prompt.

    Attributes:
        tokens: to compute.
        context: tokens before them.
    """

    tokens: int
    context: int

    @property
    def pairs(self) -> float:
        """The pairs of a token that is left and one before it."""
        return self.tokens * (self.context + self.tokens / 2)


def chunk_tokens(prompts: Sequence[Prompt], in_flight: Prompt, cost: Cost, steps: int) -> int:
    """The number of prompt tokens for the next step.

    Args:
        prompts: that wait or are computed in part, in the order of the scheduler. At least one.
        in_flight: the prompt tokens of steps in flight: `tokens` of them, at a mean `context`. They count as work, so
            that the last chunks are as large as the first.
        cost: of a step.
        steps: that are in flight at once; with 1 there is nothing to share out.

    Returns:
        at least 1; it may be more than is left.
    """
    left = sum(prompt.tokens for prompt in prompts)
    if steps < 2:
        return left
    work = cost.per_token * (left + in_flight.tokens)
    work += cost.per_pair * (sum(prompt.pairs for prompt in prompts) + in_flight.tokens * in_flight.context)
    number = math.sqrt((steps - 1) * work / cost.fixed) if cost.fixed > 0.0 else math.inf
    number = min(max(1.0, number), max(1.0, (left + in_flight.tokens) / GRAIN))
    tokens = max(1, tokens_within(work / number, prompts, cost))
    return boundary_near(tokens, prompts) or -(-tokens // GRAIN) * GRAIN


def boundary_near(tokens: int, prompts: Sequence[Prompt]) -> int | None:
    """The end of the prompt that is nearest to so many tokens, within a quarter of them: a prompt that ends a little
    later is not worth another step. None where no prompt ends there."""
    ends = accumulate(prompt.tokens for prompt in prompts)
    near = [end for end in takewhile(lambda end: end <= tokens * (1 + NEAR), ends) if end >= tokens * (1 - NEAR)]
    return min(near, key=lambda end: abs(end - tokens)) if near else None


def tokens_within(seconds: float, prompts: Sequence[Prompt], cost: Cost) -> int:
    """The number of tokens, of these prompts in order, that take this long beside the fixed cost."""
    tokens = 0
    for prompt in prompts:
        whole = cost.per_token * prompt.tokens + cost.per_pair * prompt.pairs
        if whole > seconds:
            return tokens + _part(seconds, prompt.context, cost)
        seconds -= whole
        tokens += prompt.tokens
    return tokens


def _part(seconds: float, context: int, cost: Cost) -> int:
    """The number `n` with `per_token * n + per_pair * n * (context + n / 2) = seconds`."""
    slope = cost.per_token + cost.per_pair * context
    root = math.sqrt(slope * slope + 2.0 * cost.per_pair * seconds)
    return int(2.0 * seconds / (slope + root)) if slope + root else 0
