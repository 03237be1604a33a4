# SPDX-License-Identifier: Apache-2.0
"""The best single chain of stages: the least period, then the least latency, exposure and bytes moved.

The period of a chain is one of finitely many numbers (the times of ranges and links), so the least one is found by
bisection, and it is proven where no search below it had to be cut short.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from zpptool.planner.cheapest import cheapest_chain
from zpptool.planner.problem import NEVER, Chain, Problem, Value, value
from zpptool.planner.threshold import Bound, Found, Threshold, find_chain, layer_weights

QUICK_STATES = 48
"""How many states are kept in the first search at a period."""
DEFAULT_STATES = 4_000
"""How many states are kept in the second one, which is a proof unless there were more."""
DEFAULT_EXPANSIONS = 20_000
"""After how many states the search for the least latency is given up."""


@dataclass(frozen=True)
class Effort:
    """How much is searched before an answer is given without proof.

    Attributes:
        states: as `DEFAULT_STATES`.
        expansions: as `DEFAULT_EXPANSIONS`.
    """

    states: int = DEFAULT_STATES
    expansions: int = DEFAULT_EXPANSIONS


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
    candidates = _candidates(problem)
    weights = layer_weights(problem)
    if not candidates:
        return NoChain(True)
    widest = _find(problem, candidates[-1], weights, effort)
    if widest.chain is None:
        return NoChain(widest.proven)
    best = widest.chain
    low, high = 0, bisect_left(candidates, value(problem, best).period)
    refuted = 0  # every period among the candidates below this index is proven too small
    while low < high:
        middle = (low + high) // 2
        found = _find(problem, candidates[middle], weights, effort)
        if found.chain is None:
            low = middle + 1
            refuted = low if found.proven else refuted
        else:
            best = found.chain
            high = bisect_left(candidates, value(problem, best).period)
    return _refined(problem, best, candidates[min(refuted, high)], weights, effort)


def _candidates(problem: Problem) -> list[int]:
    """All periods that a chain can have, in order."""
    tables = {id(option.times): option.times for option in problem.options}
    tables |= {id(table): table for table in (problem.hops, problem.returns)}
    return sorted({time for table in tables.values() for row in table for time in row if time < NEVER})


def _find(problem: Problem, period: int, weights: Sequence[Sequence[int]], effort: Effort) -> Found:
    threshold = Threshold(problem, period)
    bound = Bound(threshold, weights)
    found = find_chain(threshold, bound, min(QUICK_STATES, effort.states))
    if found.chain is not None or found.proven:
        return found
    return find_chain(threshold, bound, effort.states)


def _refined(
    problem: Problem, chain: Chain, period_bound: int, weights: Sequence[Sequence[int]], effort: Effort
) -> Solution:
    """The best chain of the period that was found."""
    period = value(problem, chain).period
    threshold = Threshold(problem, period)
    bound = Bound(threshold, weights)
    cheapest = cheapest_chain(threshold, bound, effort.expansions)
    if cheapest.chain is not None:
        reached = value(problem, cheapest.chain)
        return Solution(cheapest.chain, reached, period_bound, reached.latency, True)
    for hurry in (2, 8):
        other = cheapest_chain(threshold, bound, effort.expansions // 4, hurry=hurry).chain
        if other is not None and value(problem, other) < value(problem, chain):
            chain = other
    return Solution(chain, value(problem, chain), period_bound, cheapest.latency_bound, False)
