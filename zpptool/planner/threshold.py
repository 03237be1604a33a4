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

MOST_WEIGHTS = 3
"""How many weights of layers bound what devices can hold; each costs time in every state."""


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


def _mask(row: Sequence[int], limit: int) -> int:
    return sum(1 << place for place, time in enumerate(row) if time <= limit)


def layer_weights(problem: Problem) -> list[list[int]]:
    """Running sums of a few weights of layers: one each, and the time of each on options where it is known."""
    count = problem.num_layers
    weights = [list(range(count + 1))]
    for option in {id(option.times): option for option in problem.options}.values():
        single = [option.times[layer][layer + 1] for layer in range(count)]
        if len(weights) < MOST_WEIGHTS and max(single) < NEVER and len(set(single[1:-1])) > 1:
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
        self._first: dict[tuple[int, ...], int] = {}
        self._counts = problem.counts
        self._most = [[0] * len(problem.counts) for _ in weights]
        self._loss = [[0] * len(problem.counts) for _ in weights]
        known: dict[int, list[tuple[int, int]]] = {}
        for ends in threshold.ends:
            if id(ends) not in known:
                known[id(ends)] = [_largest(ends, sums) for sums in weights]
        largest = [known[id(ends)] for ends in threshold.ends]
        for number, (most, loss) in enumerate(zip(self._most, self._loss, strict=True)):
            for option, own in zip(problem.options, largest, strict=True):
                most[option.group] = max(most[option.group], -(-own[number][0] // option.width))
            losses: dict[int, int] = {}
            for option, own in zip(problem.options, largest, strict=True):
                less = option.width * most[option.group] - own[number][1]
                losses[option.group] = min(losses.get(option.group, less), less)
            for group, less in losses.items():
                loss[group] = less

    def first_position(self, used: tuple[int, ...]) -> int:
        """The smallest number of layers after which the devices that are not used may hold the others; all if none."""
        if used not in self._first:
            left = self._left(used)
            first = 0
            for sums, most, loss in zip(self._weights, self._most, self._loss, strict=True):
                missing = sums[-1] - self._held(left, most, loss)
                if missing > 0:
                    first = max(first, bisect_left(sums, missing))
            self._first[used] = min(first, len(self._weights[0]) - 1)
        return self._first[used]

    def slack(self, used: tuple[int, ...], position: int) -> float:
        """How much more the devices that are not used could hold than is needed, as a part of all; the least weight."""
        left = self._left(used)
        return min(
            (self._held(left, most, loss) - sums[-1] + sums[position]) / (sums[-1] or 1)
            for sums, most, loss in zip(self._weights, self._most, self._loss, strict=True)
        )

    def _left(self, used: tuple[int, ...]) -> list[int]:
        return [count - taken for count, taken in zip(self._counts, used, strict=True)]

    def _held(self, left: Sequence[int], most: Sequence[int], loss: Sequence[int]) -> int:
        """What the devices that are left hold at most: one stage of them is the last one, with the LM head."""
        held, least = 0, -1
        for count, each, less in zip(left, most, loss, strict=True):
            if count:
                held += count * each
                if least < 0 or less < least:
                    least = less
        return held - max(least, 0)


def _largest(ends: Sequence[int], sums: Sequence[int]) -> tuple[int, int]:
    """The largest sum of weights of a permitted range, and of one that ends with the last layer.

    Sums grow with the range, so of the ends after each start the last one counts.
    """
    anywhere = at_the_end = 0
    final = len(sums) - 1
    for start, mask in enumerate(ends):
        if mask:
            end = mask.bit_length() - 1
            anywhere = max(anywhere, sums[end] - sums[start])
            if end == final:
                at_the_end = max(at_the_end, sums[end] - sums[start])
    return anywhere, at_the_end


class _State(NamedTuple):
    """Devices used of each group, the groups that may follow, and those that may be the last, as bits."""

    used: tuple[int, ...]
    onward: int
    closing: int


class Found(NamedTuple):
    """A chain, or none; whether its absence is proven; and how many steps of the search it took."""

    chain: Chain | None
    proven: bool
    steps: int = 0

    @property
    def refuted(self) -> bool:
        """Whether there is proven to be no chain."""
        return self.chain is None and self.proven


def find_chain(threshold: Threshold, bound: Bound, width: int, most_steps: int) -> Found:
    """Find a chain within the threshold.

    Args:
        threshold, bound: the limits, and the bound by which states are left out.
        width: how many states are kept for each number of stages; those with the largest slack.
        most_steps: after how many steps the search is given up. (Steps, not seconds: the same input gives the same
            answer.)
    """
    problem = threshold.problem
    zero = (0,) * len(problem.counts)
    if bound.first_position(zero) > 0:
        return Found(None, True)
    groups = (1 << len(problem.counts)) - 1
    levels: list[dict[_State, int]] = []
    current: dict[_State, int] = {}
    pruned = False
    steps = 0
    cache: dict[tuple[int, int], int] = {}
    for number in range(problem.max_stages):
        grown: dict[_State, int] = {}
        for state, reached in [(_State(zero, groups, -1), 1)] if number == 0 else current.items():
            if steps > most_steps:
                return Found(None, False, steps)
            for place, option in enumerate(problem.options):
                if not state.onward >> option.group & 1:
                    continue
                if state.used[option.group] + option.width > problem.counts[option.group]:
                    continue
                steps += 1
                closing = threshold.closing[option.group] if number == 0 else state.closing
                extended = _extended(threshold.ends[place], place, reached, cache)
                if extended >> problem.num_layers & 1 and closing >> option.group & 1:
                    return Found(_traced(threshold, levels, state, place, reached), True, steps)
                extended &= ~(1 << problem.num_layers)
                if not extended:
                    continue
                used = list(state.used)
                used[option.group] += option.width
                after = _State(tuple(used), threshold.onward[option.group], closing)
                grown[after] = grown.get(after, 0) | extended
        current = {}
        for state, reached in grown.items():
            kept = reached >> (first := bound.first_position(state.used)) << first
            if kept:
                current[state] = kept
        if len(current) > width:
            pruned = True
            current = _best(bound, current, width)
        if not current:
            break
        levels.append(current)
    return Found(None, not pruned, steps)


def _extended(ends: Sequence[int], place: int, reached: int, cache: dict[tuple[int, int], int]) -> int:
    key = (place, reached)
    if key not in cache:
        extended = 0
        for position in bits_of(reached):
            extended |= ends[position]
        cache[key] = extended
    return cache[key]


def _best(bound: Bound, states: dict[_State, int], width: int) -> dict[_State, int]:
    def slack(item: tuple[_State, int]) -> tuple[float, _State]:
        return -bound.slack(item[0].used, item[1].bit_length() - 1), item[0]

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
