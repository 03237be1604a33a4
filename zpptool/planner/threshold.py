# SPDX-License-Identifier: Apache-2.0
"""Whether a chain exists in which no stage and no link takes longer than a given period.

A dynamic programme over the devices used of each group and the group of the last stage; of each such state the
reachable numbers of layers are the bits of one integer. A state is left out where the remaining devices cannot hold the
remaining layers. States may be limited in number (a beam): what is found is then still a chain, but nothing found
proves nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from zpptool.planner.problem import NEVER, Chain, Placed, Problem


def bits_of(number: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


class Threshold:
    """A problem with a limit on the time of each stage and link.

    Attributes:
        problem, period: as given.
        ends: `ends[o][a]` has the bits b for which the option o may hold the layers `[a, b)`.
        onward: the groups that a stage of each group can send to, as bits.
        closing: the groups that can send to a first stage of each group, as bits.
    """

    def __init__(self, problem: Problem, period: int) -> None:
        self.problem, self.period = problem, period
        limit = min(period, NEVER - 1)
        masks: dict[int, list[int]] = {}
        for option in problem.options:
            if id(option.times) not in masks:
                masks[id(option.times)] = [_mask(row, limit) for row in option.times]
        self.ends = [masks[id(option.times)] for option in problem.options]
        self.onward = [_mask(row, limit) for row in problem.hops]
        self.closing = [_mask([row[group] for row in problem.returns], limit) for group in range(len(problem.counts))]

    def bound(self, weights: Sequence[Sequence[int]]) -> Bound:
        """What groups can hold at most, by sums of weights of layers (see `layer_weights`)."""
        return Bound(self, weights)


def _mask(row: Sequence[int], limit: int) -> int:
    return sum(1 << place for place, time in enumerate(row) if time <= limit)


def layer_weights(problem: Problem) -> list[list[int]]:
    """Running sums of several weights of layers: one each, and the time of each on the options where it is known."""
    count = problem.num_layers
    weights = [list(range(count + 1))]
    for option in {id(option.times): option for option in problem.options}.values():
        single = [option.times[layer][layer + 1] for layer in range(count)]
        if max(single) < NEVER and len(set(single)) > 1:
            weights.append([0, *accumulate(single)])
    return weights


class Bound:
    """An upper bound on what devices can hold, by which hopeless states are left out.

    Args:
        threshold: the limits.
        weights: running sums over the layers.
    """

    def __init__(self, threshold: Threshold, weights: Sequence[Sequence[int]]) -> None:
        problem = threshold.problem
        self._weights = weights
        self._most = [[0] * len(problem.counts) for _ in weights]
        done: dict[int, list[int]] = {}
        for option, ends in zip(problem.options, threshold.ends, strict=True):
            if id(ends) not in done:
                done[id(ends)] = [_largest(ends, sums) for sums in weights]
            for most, largest in zip(self._most, done[id(ends)], strict=True):
                each = -(-largest // option.width)
                most[option.group] = max(most[option.group], each)

    def first_position(self, left: Sequence[int]) -> int:
        """The smallest number of layers after which the devices that are left may suffice; past the end if none."""
        first = 0
        for sums, most in zip(self._weights, self._most, strict=True):
            missing = sums[-1] - sum(count * each for count, each in zip(left, most, strict=True))
            if missing > 0:
                first = max(first, bisect_left(sums, missing))
        return first

    def slack(self, left: Sequence[int], position: int) -> float:
        """How much more the devices that are left could hold than is needed, as a part of all; the tightest weight."""
        return min(
            (sum(count * each for count, each in zip(left, most, strict=True)) - sums[-1] + sums[position])
            / (sums[-1] or 1)
            for sums, most in zip(self._weights, self._most, strict=True)
        )


def _largest(ends: Sequence[int], sums: Sequence[int]) -> int:
    """The largest sum of weights of a permitted range; sums grow with the range, so its last end counts."""
    return max((sums[mask.bit_length() - 1] - sums[start] for start, mask in enumerate(ends) if mask), default=0)


class _State(NamedTuple):
    """Devices used of each group, the groups that may follow, and those that may be the last, as bits."""

    used: tuple[int, ...]
    onward: int
    closing: int


class Found(NamedTuple):
    """A chain, or none; and whether its absence is proven."""

    chain: Chain | None
    proven: bool


def find_chain(threshold: Threshold, bound: Bound, width: int) -> Found:
    """Find a chain within the threshold.

    Args:
        threshold, bound: the limits, and the bound by which states are left out.
        width: how many states are kept for each number of stages; those with the largest slack.
    """
    problem = threshold.problem
    zero = (0,) * len(problem.counts)
    if bound.first_position(problem.counts) > 0:
        return Found(None, True)
    groups = (1 << len(problem.counts)) - 1
    levels: list[dict[_State, int]] = []
    current: dict[_State, int] = {}
    pruned = False
    cache: dict[tuple[int, int], int] = {}
    for number in range(problem.max_stages):
        grown: dict[_State, int] = {}
        for state, reached in [(_State(zero, groups, -1), 1)] if number == 0 else current.items():
            for place, option in enumerate(problem.options):
                if not state.onward >> option.group & 1:
                    continue
                if state.used[option.group] + option.width > problem.counts[option.group]:
                    continue
                closing = threshold.closing[option.group] if number == 0 else state.closing
                extended = _extended(threshold.ends[place], place, reached, cache)
                if extended >> problem.num_layers & 1 and closing >> option.group & 1:
                    return Found(_traced(threshold, levels, state, place, reached), True)
                extended &= ~(1 << problem.num_layers)
                if not extended:
                    continue
                used = list(state.used)
                used[option.group] += option.width
                after = _State(tuple(used), threshold.onward[option.group], closing)
                grown[after] = grown.get(after, 0) | extended
        current = {}
        for state, reached in grown.items():
            left = [count - used for count, used in zip(problem.counts, state.used, strict=True)]
            kept = reached >> (first := bound.first_position(left)) << first
            if kept:
                current[state] = kept
        if len(current) > width:
            pruned = True
            current = _best(problem, bound, current, width)
        if not current:
            break
        levels.append(current)
    return Found(None, not pruned)


def _extended(ends: Sequence[int], place: int, reached: int, cache: dict[tuple[int, int], int]) -> int:
    key = (place, reached)
    if key not in cache:
        extended = 0
        for position in bits_of(reached):
            extended |= ends[position]
        cache[key] = extended
    return cache[key]


def _best(problem: Problem, bound: Bound, states: dict[_State, int], width: int) -> dict[_State, int]:
    def slack(item: tuple[_State, int]) -> tuple[float, _State]:
        left = [count - used for count, used in zip(problem.counts, item[0].used, strict=True)]
        return -bound.slack(left, item[1].bit_length() - 1), item[0]

    return dict(sorted(states.items(), key=slack)[:width])


def _traced(threshold: Threshold, levels: list[dict[_State, int]], state: _State, option: int, reached: int) -> Chain:
    """The stages that lead to `state` (of the last level) and from there, by `option`, to the last layer."""
    problem = threshold.problem
    end = problem.num_layers
    start = next(at for at in bits_of(reached) if threshold.ends[option][at] >> end & 1)
    chain = [Placed(option, start, end)]
    for level in range(len(levels) - 1, -1, -1):
        before = levels[level - 1] if level else {}
        state, stage = _step_before(threshold, before, state, chain[-1].start, first=level == 0)
        chain.append(stage)
    return tuple(reversed(chain))


def _step_before(
    threshold: Threshold, before: dict[_State, int], state: _State, end: int, *, first: bool
) -> tuple[_State, Placed]:
    """One way in which `state` reached `end`: the state before, and the stage."""
    problem = threshold.problem
    for place, option in enumerate(problem.options):
        if threshold.onward[option.group] != state.onward or state.used[option.group] < option.width:
            continue
        used = list(state.used)
        used[option.group] -= option.width
        if first:
            fits = not any(used) and threshold.closing[option.group] == state.closing
            if fits and threshold.ends[place][0] >> end & 1:
                return state, Placed(place, 0, end)
            continue
        for other, reached in before.items():
            if other.used != tuple(used) or other.closing != state.closing or not other.onward >> option.group & 1:
                continue
            for start in bits_of(reached):
                if threshold.ends[place][start] >> end & 1:
                    return other, Placed(place, start, end)
    raise AssertionError("a state was reached from no other")
