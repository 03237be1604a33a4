# SPDX-License-Identifier: Apache-2.0
"""Chains within a period where devices have prices in place of numbers, and what follows for the numbers there are.

With prices the cheapest chain is a shortest path, which takes no time. If it costs more than all devices together, no
chain makes do with them: the period is too small. Prices rise where more devices are taken than there are, and fall
elsewhere, until such a proof is found, or a chain that makes do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from zpptool.planner.problem import Chain, Placed, devices_used
from zpptool.planner.threshold import Found, Threshold, bits_of

ROUNDS = 60
"""How often prices are adjusted before the question is left open."""
MARGIN = 1e-9
"""By how much more the cheapest chain has to cost, so that rounding is no proof."""


def priced_chain(threshold: Threshold) -> Found:
    """Find a chain within the period, or a proof that there is none, or neither."""
    counts = threshold.problem.counts
    total = sum(counts)
    prices = [1 / total] * len(counts)
    for number in range(ROUNDS):
        cost, chain = cheapest_devices(threshold, prices)
        if chain is None or cost > 1 + MARGIN:
            return Found(None, True)
        used = devices_used(threshold.problem, chain)
        fits = all(taken <= count for taken, count in zip(used, counts, strict=True))
        if fits and len(chain) <= threshold.problem.max_stages:
            return Found(chain, True)
        rate = 2 / math.sqrt(number + 4)
        raised = [
            price * math.exp(rate * max(-1.0, min(1.0, (taken - count) / max(1, count))))
            for price, taken, count in zip(prices, used, counts, strict=True)
        ]
        worth = sum(price * count for price, count in zip(raised, counts, strict=True))
        prices = [price / worth for price in raised]
    return Found(None, False)


def cheapest_devices(threshold: Threshold, prices: Sequence[float]) -> tuple[float, Chain | None]:
    """The chain within a period whose devices cost the least, were there any number of each group.

    Args:
        threshold: the period.
        prices: of one device of each group.

    Returns:
        the cost, and the chain; infinity and None if there is no chain at all.
    """
    problem = threshold.problem
    best: tuple[float, Chain | None] = (math.inf, None)
    for closing in sorted(set(threshold.closing)):
        reached: list[dict[int, tuple[float, Placed, int]]] = [{} for _ in range(problem.num_layers + 1)]
        for start in range(problem.num_layers):
            for place, option in enumerate(problem.options):
                group = option.group
                before = -1
                if start == 0:
                    if threshold.closing[group] != closing:
                        continue
                    cost = 0.0
                else:
                    came = [
                        (known[0], last)
                        for last, known in reached[start].items()
                        if threshold.onward[last] >> group & 1
                    ]
                    if not came:
                        continue
                    cost, before = min(came)
                cost += option.width * prices[group]
                for end in bits_of(threshold.ends[place][start]):
                    if end == problem.num_layers and not closing >> group & 1:
                        continue
                    if group not in reached[end] or cost < reached[end][group][0]:
                        reached[end][group] = cost, Placed(place, start, end), before
        for group, (cost, _stage, _before) in reached[-1].items():
            if cost < best[0]:
                best = cost, _traced(reached, group)
    return best


def _traced(reached: Sequence[dict[int, tuple[float, Placed, int]]], group: int) -> Chain:
    chain, end = [], len(reached) - 1
    while end:
        _cost, stage, group = reached[end][group]
        chain.append(stage)
        end = stage.start
    return tuple(reversed(chain))
