# SPDX-License-Identifier: Apache-2.0
"""A planning problem in plain integers, and the value of a chain of stages.

Devices that are interchangeable (of one kind, on one host or in one place) form a group. A stage takes one or several
devices of a group and a range of layers; a chain of stages covers all layers, in order. Times are integers of any one
unit, so that equal times compare as equal and the answer does not depend on the unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

NEVER = 1 << 62
"""The time of what is not possible: a stage that does not fit, a cut that is not legal, hosts without a link."""
NOISE_PERCENT = 10
Table = Sequence[Sequence[int]]


@dataclass(frozen=True)
class StageOption:
    """One way to run a stage.

    Attributes:
        group: whose devices it takes.
        width: how many of them (the tensor-parallel degree).
        times: `times[a][b]` is the time of one step of the layers `[a, b)`, with what the first and the last stage do
            beside them; `NEVER` where it is not possible.
        moved: `moved[b] - moved[a]` is how many bytes of the layers `[a, b)` are not there yet.
    """

    group: int
    width: int
    times: Table
    moved: Sequence[int]


@dataclass(frozen=True)
class Problem:
    """What is to be planned.

    Attributes:
        num_layers: how many layers there are.
        counts: how many devices each group has.
        options: the ways to run a stage.
        hops: `hops[g][h]` is how long a link from group g to group h is busy with one step.
        delays: `delays[g][h]` is how much later a step begins on h than it ended on g.
        returns: as `hops`, for the link from the last stage to the first.
        return_delays: as `delays`, likewise.
        max_stages: the most stages a chain may have.
    """

    num_layers: int
    counts: tuple[int, ...]
    options: tuple[StageOption, ...]
    hops: Table
    delays: Table
    returns: Table
    return_delays: Table
    max_stages: int


class Placed(NamedTuple):
    """The layers `[start, end)` on the devices of an option, by its index."""

    option: int
    start: int
    end: int


Chain = tuple[Placed, ...]
"""The stages of one pipeline, in order."""


class Value(NamedTuple):
    """How good a chain is: smaller is better, earlier parts count first.

    Attributes:
        period: the time between two steps, which is that of the slowest stage or link.
        latency: the time of one step all the way around.
        exposure: by how much stages and links would exceed the period, in sum, each being 10 % slower; in hundredths.
        moved: bytes that have to be moved from the plan in force.
    """

    period: int
    latency: int
    exposure: int
    moved: int


def excess(time: int, period: int) -> int:
    """By how much something that takes `time` would exceed the period, were it 10 % slower; in hundredths."""
    return max(0, (100 + NOISE_PERCENT) * time - 100 * period)


def chain_times(problem: Problem, chain: Chain) -> list[int]:
    """The times of its stages, then those of its links, the return link last."""
    groups = [problem.options[stage.option].group for stage in chain]
    stages = [problem.options[stage.option].times[stage.start][stage.end] for stage in chain]
    return [*stages, *(problem.hops[a][b] for a, b in pairwise(groups)), problem.returns[groups[-1]][groups[0]]]


def value(problem: Problem, chain: Chain) -> Value:
    """The value of a chain that covers all layers."""
    groups = [problem.options[stage.option].group for stage in chain]
    times = chain_times(problem, chain)
    period = max(times)
    delays = sum(problem.delays[a][b] for a, b in pairwise(groups))
    moved = (problem.options[stage.option].moved for stage in chain)
    return Value(
        period,
        sum(times[: len(chain)]) + delays + problem.return_delays[groups[-1]][groups[0]],
        sum(excess(time, period) for time in times),
        sum(held[stage.end] - held[stage.start] for held, stage in zip(moved, chain, strict=True)),
    )


def devices_used(problem: Problem, chain: Chain) -> tuple[int, ...]:
    """How many devices of each group a chain takes."""
    used: Counter[int] = Counter()
    for stage in chain:
        used[problem.options[stage.option].group] += problem.options[stage.option].width
    return tuple(used[group] for group in range(len(problem.counts)))


def is_possible(problem: Problem, chain: Chain) -> bool:
    """Whether a chain covers all layers in order with devices, memory and links that there are."""
    ends = [0, *(stage.end for stage in chain)]
    return (
        0 < len(chain) <= problem.max_stages
        and ends[-1] == problem.num_layers
        and all(stage.start == end < stage.end for stage, end in zip(chain, ends, strict=False))
        and max(chain_times(problem, chain)) < NEVER
        and all(used <= count for used, count in zip(devices_used(problem, chain), problem.counts, strict=True))
    )
