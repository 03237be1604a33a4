# SPDX-License-Identifier: Apache-2.0
"""Several whole pipelines side by side: which devices each takes, so that their rates together are the highest.

Where links between regions are slow, two pipelines of one region each beat one across both. Column generation: a master
problem (solved by HiGHS) chooses among chains, its prices of devices say which further chain would help, and where none
does, the master's value bounds every choice. Few ways to divide the devices are all tried instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import NamedTuple

from zpptool.planner.chain import Effort, NoChain, best_chain, possible_periods
from zpptool.planner.master import maximised
from zpptool.planner.problem import NEVER, Chain, Problem, devices_used, is_possible, value
from zpptool.planner.relaxed import cheapest_devices
from zpptool.planner.round import best_round, round_time
from zpptool.planner.threshold import Threshold

MOST_DIVISIONS = 256
"""Up to how many ways to take devices of each group are all tried."""
BUCKETS = 24
"""How many periods are priced in a round; those between two of them are bounded together."""
MOST_ROUNDS = 20
"""After how many rounds no further chain is looked for."""
EVERY_STEP = 1 << 40
"""More steps in progress than any latency has room for: the period alone is the rate."""


class Column(NamedTuple):
    """A chain, the devices that it takes of each group, and its rate: steps in a unit of time."""

    chain: Chain
    used: tuple[int, ...]
    rate: float


@dataclass(frozen=True)
class Pipelines:
    """The pipelines that were chosen.

    Attributes:
        chains: of each; no device is in two of them.
        rate: steps in a unit of time, of all together.
        bound: no choice has a higher rate.
    """

    chains: tuple[Chain, ...]
    rate: float
    bound: float

    @property
    def gap(self) -> float:
        """By which part the rate may be higher at most."""
        return max(0.0, self.bound / self.rate - 1) if self.rate else 0.0


class _Choice(NamedTuple):
    """An answer of the master problem: how much of each column, its value, and the price of a device and a pipeline."""

    parts: list[float]
    rate: float
    prices: list[float]
    of_one_more: float


def best_pipelines(
    problem: Problem, most: int, effort: Effort = Effort(), steps: int = EVERY_STEP
) -> Pipelines | NoChain:
    """Choose up to `most` pipelines.

    Args:
        problem: the devices and the layers.
        most: how many pipelines there may be.
        effort: how much is searched for each.
        steps: how many steps are in progress at once, so that a slow link makes stages wait; by default they never do.

    Raises:
        ZppError: (USAGE) highspy is not installed.
    """
    if math.prod(count + 1 for count in problem.counts) <= MOST_DIVISIONS:
        columns, exact = _every_division(problem, steps, effort)
        bound = math.inf
    else:
        alone = best_chain(problem, effort)
        if isinstance(alone, NoChain):
            return alone
        columns, exact = _seeds(problem, steps, effort), False
        bound = _generate(problem, columns, most, alone.period_bound, steps)
    if not columns:
        return NoChain(exact)
    chosen = _choose(columns, problem.counts, most, whole=True)
    taken = [column for column, part in zip(columns, chosen.parts, strict=True) for _ in range(round(part))]
    rate = sum(column.rate for column in taken)
    return Pipelines(tuple(column.chain for column in taken), rate, rate if exact else max(rate, bound))


def _every_division(problem: Problem, steps: int, effort: Effort) -> tuple[list[Column], bool]:
    """The best chain of every number of devices of each group, and whether each is proven to be the best."""
    columns: dict[Chain, Column] = {}
    exact = True
    for counts in product(*(range(count + 1) for count in problem.counts)):
        if not any(counts):
            continue
        found = best_round(replace(problem, counts=counts), steps, effort)
        if isinstance(found, NoChain):
            exact &= found.proven
            continue
        exact &= found.time == found.bound
        columns[found.solution.chain] = _column(problem, found.solution.chain, steps)
    return list(columns.values()), exact


def _column(problem: Problem, chain: Chain, steps: int) -> Column:
    time = round_time(value(problem, chain), steps)
    return Column(chain, devices_used(problem, chain), steps / max(steps, time))


def _seeds(problem: Problem, steps: int, effort: Effort) -> list[Column]:
    """Chains to begin with: of all devices, of parts of them, of groups with fast links, and of what each leaves."""
    divided = [tuple(-(-count // part) for count in problem.counts) for part in (1, 2, 3, 4)]
    for limit in sorted({hop for row in problem.hops for hop in row if hop < NEVER})[:8]:
        divided += _clusters(problem, limit)
    columns: dict[Chain, Column] = {}
    for counts in dict.fromkeys(divided):
        left = counts
        while any(left):
            found = best_round(replace(problem, counts=left), steps, effort)
            if isinstance(found, NoChain):
                break
            chain = found.solution.chain
            columns[chain] = _column(problem, chain, steps)
            used = columns[chain].used
            left = tuple(count - taken for count, taken in zip(left, used, strict=True))
    return list(columns.values())


def _clusters(problem: Problem, limit: int) -> list[tuple[int, ...]]:
    """The devices of each set of groups that links faster than a limit hold together."""
    groups = range(len(problem.counts))
    own = list(groups)
    for first, second in product(groups, groups):
        if max(problem.hops[first][second], problem.hops[second][first]) <= limit and own[first] != own[second]:
            merged, gone = own[first], own[second]
            own = [merged if name == gone else name for name in own]
    return [
        tuple(count if name == cluster else 0 for name, count in zip(own, problem.counts, strict=True))
        for cluster in dict.fromkeys(own)
    ]


def _generate(problem: Problem, columns: list[Column], most: int, least_period: int, steps: int) -> float:
    """Add chains that the prices of devices call for.

    Args:
        problem, columns, most: what is chosen from; columns are added.
        least_period: no chain has a shorter one.
        steps: in progress at once.

    Returns:
        the least bound on the rate that was seen.
    """
    periods = [period for period in possible_periods(problem) if period >= least_period]
    places = sorted({round(number * (len(periods) - 1) / BUCKETS) for number in range(BUCKETS + 1)})
    thresholds = [(periods[before + 1], Threshold(problem, periods[step])) for before, step in pairwise([-1, *places])]
    known = {column.chain for column in columns}
    bound = most / max(1, least_period)
    for _ in range(MOST_ROUNDS):
        choice = _choose(columns, problem.counts, most, whole=False)
        promise, added = 0.0, False
        for least, threshold in thresholds:
            cost, chain = cheapest_devices(threshold, choice.prices)
            if chain is None:
                continue
            promise = max(promise, 1 / max(1, least) - cost - choice.of_one_more)
            gain = _column(problem, chain, steps).rate - cost - choice.of_one_more
            if gain > 1e-9 * choice.rate and chain not in known and is_possible(problem, chain):
                known.add(chain)
                columns.append(_column(problem, chain, steps))
                added = True
        bound = min(bound, choice.rate + most * promise)
        if not added:
            break
    return bound


def _choose(columns: Sequence[Column], counts: Sequence[int], most: int, *, whole: bool) -> _Choice:
    """Solve the master problem over the columns: in parts of them for prices, or in whole ones for an answer."""
    scale = 1 / max(column.rate for column in columns)
    rows = [*map(float, counts), float(most)]
    taken = [(*column.used, 1) for column in columns]
    parts, duals = maximised([column.rate * scale for column in columns], taken, rows, float(most), whole=whole)
    rate = sum(column.rate * part for column, part in zip(columns, parts, strict=True))
    prices = [dual / scale for dual in duals]
    return _Choice(parts, rate, prices[:-1], prices[-1])
