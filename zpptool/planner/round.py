# SPDX-License-Identifier: Apache-2.0
"""The chain in which one token of every request takes the least time, with a given number of steps in progress.

A round is the time in which every request in progress gets one token: as many periods as there are steps in progress,
or the latency of one step where links are so slow that the stages wait. Where the latency counts, a longer period may
be the better choice, so the two are weighed.
"""

from __future__ import annotations

from dataclasses import dataclass

from zpptool.planner.chain import Effort, NoChain, Solution, best_chain, possible_periods
from zpptool.planner.cheapest import cheapest_chain, least_latency
from zpptool.planner.problem import Problem, Value, value
from zpptool.planner.threshold import Bound, Threshold, layer_weights


@dataclass(frozen=True)
class Round:
    """The chain with the shortest round that was found.

    Attributes:
        solution: the chain.
        time: of a round.
        bound: no chain has a shorter round.
    """

    solution: Solution
    time: int
    bound: int


def round_time(reached: Value, steps: int) -> int:
    """The time of a round of a chain with `steps` steps in progress."""
    return max(steps * reached.period, reached.latency)


def best_round(problem: Problem, steps: int, effort: Effort = Effort()) -> Round | NoChain:
    """Find the chain with the shortest round; of those the one with the least period, latency, exposure and bytes."""
    fastest = best_chain(problem, effort)
    if isinstance(fastest, NoChain):
        return fastest
    longest = Threshold(problem, possible_periods(problem)[-1])
    bound = max(steps * fastest.period_bound, least_latency(longest))
    best = Round(fastest, round_time(fastest.value, steps), bound)
    if fastest.value.latency <= steps * fastest.value.period:
        return best
    weights = layer_weights(problem)
    periods = [period for period in possible_periods(problem) if period >= fastest.value.period]
    low, high = (
        0,
        len(periods) - 1,
    )  # the latency falls with the period: where it meets the steps, the round is shortest
    proven = True
    while low <= high:
        middle = (low + high) // 2
        threshold = Threshold(problem, periods[middle])
        found = cheapest_chain(threshold, Bound(threshold, weights), effort.reached)
        if found.chain is None:
            proven = False
            break
        reached = value(problem, found.chain)
        time = round_time(reached, steps)
        if (time, reached) < (best.time, best.solution.value):
            solution = Solution(found.chain, reached, fastest.period_bound, reached.latency, True)
            best = Round(solution, time, bound)
        if reached.latency <= steps * periods[middle]:
            high = middle - 1
        else:
            low = middle + 1
    return Round(best.solution, best.time, best.time if proven and fastest.gap == 0 else bound)
