# SPDX-License-Identifier: Apache-2.0
"""The best single chain of stages: the least period, then the least latency, exposure and bytes moved.

The period of a chain is one of finitely many numbers (the times of ranges and links), so the least one is found by
bisection, and it is proven where no search below it had to be cut short.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from zpptool.planner.cheapest import cheapest_chain
from zpptool.planner.problem import NEVER, Chain, Problem, Value, value
from zpptool.planner.relaxed import priced_chain
from zpptool.planner.threshold import Bound, Found, Threshold, find_chain, layer_weights
from zpptool.planner.uniform import uniform_chain

QUICK_STATES = 24
"""How many states are kept in the first search at a period."""
QUICK_STEPS = 40_000
"""After how many steps that search is given up."""
DEFAULT_STEPS = 200_000
"""How many steps second searches take in all. A second search keeps every state: it ends with a chain or a proof."""
BOUND_STEPS = 5
"""In how many steps the bound on the period is raised where no proof was found; each halves the gap at most."""
DEFAULT_REACHED = 40_000
"""After how many states the search for the least latency is given up."""


@dataclass(frozen=True)
class Effort:
    """How much is searched before an answer is given without proof.

    Attributes:
        steps: as `DEFAULT_STEPS`.
        reached: as `DEFAULT_REACHED`.
    """

    steps: int = DEFAULT_STEPS
    reached: int = DEFAULT_REACHED


@dataclass(frozen=True)
class Solution:
    """The best chain that was found.

    Attributes:
        chain: its stages.
        value: how good it is.
        period_bound: no chain has a smaller period.
        latency_bound: no chain of this period has a smaller latency.
        tie_proven: whether no chain of this period is better in latency, exposure or bytes moved.
    """

    chain: Chain
    value: Value
    period_bound: int
    latency_bound: int
    tie_proven: bool

    @property
    def gap(self) -> float:
        """By which part the period may exceed the least possible one; 0 where it is proven to be the least."""
        return self.value.period / self.period_bound - 1 if self.period_bound else 0.0


@dataclass(frozen=True)
class NoChain:
    """No chain was found; `proven` if there is none."""

    proven: bool


def best_chain(problem: Problem, effort: Effort = Effort()) -> Solution | NoChain:
    """Find the best chain of a problem."""
    candidates = possible_periods(problem)
    search = _Search(problem, layer_weights(problem), effort.steps)
    if not candidates:
        return NoChain(True)
    widest = search.at(candidates[-1])
    if widest.chain is None:
        return NoChain(widest.proven)
    best = widest.chain
    low, high = 0, bisect_left(candidates, value(problem, best).period)
    refuted = 0  # every period among the candidates below this index is proven too small
    while low < high:
        middle = (low + high) // 2
        found = search.at(candidates[middle])
        if found.chain is None:
            low = middle + 1
            refuted = low if found.proven else refuted
        else:
            best = found.chain
            high = bisect_left(candidates, value(problem, best).period)
    refuted = _raised(problem, candidates, refuted, high)
    return _refined(problem, best, candidates[min(refuted, high)], search.weights, effort)


def _raised(problem: Problem, candidates: Sequence[int], refuted: int, high: int) -> int:
    """Prove more periods to be too small, by prices of devices; the first index that is not."""
    top = high
    for _ in range(BOUND_STEPS):
        if refuted >= top:
            break
        middle = (refuted + top) // 2
        if priced_chain(Threshold(problem, candidates[middle])).refuted:
            refuted = middle + 1
        else:
            top = middle
    return refuted


def possible_periods(problem: Problem) -> list[int]:
    """All periods that a chain can have, in order."""
    tables = {id(option.times): option.times for option in problem.options}
    tables |= {id(table): table for table in (problem.hops, problem.returns)}
    return sorted({time for table in tables.values() for row in table for time in row if time < NEVER})


class _Search:
    """Searches for chains within a period, of which the thorough ones share a number of steps."""

    def __init__(self, problem: Problem, weights: Sequence[Sequence[int]], steps: int) -> None:
        self.weights = weights
        self._problem = problem
        self._steps = steps

    def at(self, period: int) -> Found:
        """Find a chain within the period."""
        threshold = Threshold(self._problem, period)
        counted = uniform_chain(threshold)
        if counted is not None:
            return counted
        bound = Bound(threshold, self.weights)
        found = find_chain(threshold, bound, QUICK_STATES, QUICK_STEPS)
        if found.chain is None and not found.proven:
            found = priced_chain(threshold)
        if found.chain is None and not found.proven and self._steps > 0:
            found = find_chain(threshold, bound, sys.maxsize, self._steps)
            self._steps -= found.steps
        return found


def _refined(
    problem: Problem, chain: Chain, period_bound: int, weights: Sequence[Sequence[int]], effort: Effort
) -> Solution:
    """The best chain of the period that was found."""
    period = value(problem, chain).period
    threshold = Threshold(problem, period)
    bound = Bound(threshold, weights)
    cheapest = cheapest_chain(threshold, bound, effort.reached)
    if cheapest.chain is not None:
        reached = value(problem, cheapest.chain)
        return Solution(cheapest.chain, reached, period_bound, reached.latency, True)
    for hurry in (2, 8):
        other = cheapest_chain(threshold, bound, effort.reached // 2, hurry=hurry).chain
        if other is not None and value(problem, other) < value(problem, chain):
            chain = other
    return Solution(chain, value(problem, chain), period_bound, cheapest.latency_bound, False)
