# SPDX-License-Identifier: Apache-2.0
"""Of all chains within a period, the one with the least latency, then exposure, then bytes moved.

A best-first search (A*) over layers placed, devices used, and the groups of the first and the last stage. The estimate
of what is left ignores how many devices there are, so it is never too high, and the first chain that is complete is the
best.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from zpptool.planner.problem import Chain, Placed, excess
from zpptool.planner.threshold import Bound, Threshold, bits_of

HURRIED_ENDS = 3
"""How many of the longest ranges are tried in a hurry."""


class Cheapest(NamedTuple):
    """The chain, or None if the search was given up; and a lower bound on the latency of every chain."""

    chain: Chain | None
    latency_bound: int


class _Node(NamedTuple):
    position: int
    used: tuple[int, ...]
    last: int
    first: int
    stages: int


def cheapest_chain(threshold: Threshold, bound: Bound, limit: int, *, hurry: int = 1) -> Cheapest:
    """Find the chain.

    Args:
        threshold, bound: the period that no stage and link exceeds, and what the devices can hold.
        limit: how many states are reached before the search is given up.
        hurry: a factor on the estimate. Above 1 only the longest ranges of each option are tried, so that a chain is
            found earlier, and it need not be the best.
    """
    problem, period = threshold.problem, threshold.period
    rest = _estimates(threshold)
    count_stages = any(option.width > 1 for option in problem.options) or problem.max_stages < sum(problem.counts)
    start = _Node(0, (0,) * len(problem.counts), -1, -1, 0)
    queue: list[tuple[tuple[int, int, int], int, _Node, tuple[int, int, int], int]] = []
    heapq.heappush(queue, ((hurry * rest[0], 0, 0), 0, start, (0, 0, 0), -1))
    best = {start: (0, 0, 0)}
    trail: list[tuple[int, Placed]] = []
    number = 0
    while queue:
        estimate, _number, node, cost, trace = heapq.heappop(queue)
        if node.position == problem.num_layers and node.last < 0:
            return Cheapest(_chain(trail, trace), cost[0] if hurry == 1 else 0)
        if best[node] < cost:
            continue
        if number > limit:
            return Cheapest(None, estimate[0] if hurry == 1 else 0)
        for place, option in enumerate(problem.options):
            group = option.group
            if node.used[group] + option.width > problem.counts[group] or node.stages >= problem.max_stages:
                continue
            if node.last >= 0 and not threshold.onward[node.last] >> group & 1:
                continue
            used = (*node.used[:group], node.used[group] + option.width, *node.used[group + 1 :])
            ends = threshold.ends[place][node.position] >> (low := bound.first_position(used)) << low
            if hurry > 1:
                ends = ends >> (low := max(0, ends.bit_length() - HURRIED_ENDS)) << low
            first = group if node.first < 0 else node.first
            hop = problem.hops[node.last][group] if node.last >= 0 else 0
            delay = problem.delays[node.last][group] if node.last >= 0 else 0
            for end in bits_of(ends):
                time = option.times[node.position][end]
                more = (
                    cost[0] + time + delay,
                    cost[1] + excess(time, period) + excess(hop, period),
                    cost[2] + option.moved[end] - option.moved[node.position],
                )
                after = _Node(end, used, group, first, node.stages + 1 if count_stages else 0)
                if end == problem.num_layers:
                    if not threshold.closing[first] >> group & 1:
                        continue
                    more = (
                        more[0] + problem.return_delays[group][first],
                        more[1] + excess(problem.returns[group][first], period),
                        more[2],
                    )
                    after = _Node(end, (), -1, -1, 0)
                if after in best and best[after] <= more:
                    continue
                best[after] = more
                number += 1
                trail.append((trace, Placed(place, node.position, end)))
                guess = (more[0] + hurry * rest[end], more[1], more[2])
                heapq.heappush(queue, (guess, number, after, more, len(trail) - 1))
    return Cheapest(None, 0)


def least_latency(threshold: Threshold) -> int:
    """A lower bound on the latency of every chain within the period."""
    return _estimates(threshold)[0]


def _estimates(threshold: Threshold) -> list[int]:
    """The least latency of the layers from each one on, were there any number of devices of each group.

    From the first layer on it is that of a whole chain; elsewhere a link leads to the next stage.
    """
    problem = threshold.problem
    count = problem.num_layers
    hop = min((time for row in problem.delays for time in row), default=0)
    close = min((time for row in problem.return_delays for time in row), default=0)
    rest = [0] * (count + 1)
    unique = {
        id(option.times): (option.times, ends) for option, ends in zip(problem.options, threshold.ends, strict=True)
    }
    for start in range(count - 1, -1, -1):
        into = hop if start else 0
        least = min(
            (
                times[start][end] + (rest[end] if end < count else close)
                for times, ends in unique.values()
                for end in bits_of(ends[start])
            ),
            default=0,
        )
        rest[start] = into + least
    return rest


def _chain(trail: Sequence[tuple[int, Placed]], trace: int) -> Chain:
    stages = []
    while trace >= 0:
        trace, stage = trail[trace]
        stages.append(stage)
    return tuple(reversed(stages))
