# SPDX-License-Identifier: Apache-2.0
"""Chains of equal layers over links that are all fast enough: then only how many layers each device holds matters.

Only the first and the last stage differ from the others, by the embedding and the LM head. Whether a chain exists is
then decided by counting, for any number of devices, and exactly.
"""

from __future__ import annotations

from typing import NamedTuple

from zpptool.planner.problem import Chain, Placed
from zpptool.planner.threshold import Found, Threshold


class _Sizes(NamedTuple):
    """The most layers of an option as the first, as the last, and as any other stage; 0 where it cannot be that."""

    first: int
    last: int
    middle: int


def uniform_chain(threshold: Threshold) -> Found | None:
    """Find a chain with few stages, or prove that there is none; None where the problem is not of this kind."""
    problem = threshold.problem
    everywhere = (1 << len(problem.counts)) - 1
    if any(mask != everywhere for mask in (*threshold.onward, *threshold.closing)):
        return None
    if len({option.group for option in problem.options}) < len(problem.options):
        return None
    if any(option.width > 1 for option in problem.options):
        return None
    known: dict[int, _Sizes | None] = {}
    sizes = []
    for ends in threshold.ends:
        if id(ends) not in known:
            known[id(ends)] = _sizes(ends, problem.num_layers)
        own = known[id(ends)]
        if own is None:
            return None
        sizes.append(own)
    for place, ends in enumerate(threshold.ends):
        if ends[0] >> problem.num_layers & 1 and problem.counts[problem.options[place].group]:
            return Found((Placed(place, 0, problem.num_layers),), True)
    return Found(_fewest_stages(threshold, sizes), True)


def _sizes(ends: list[int], layers: int) -> _Sizes | None:
    """The most layers of each kind of stage; None if fewer layers would not be possible everywhere too."""
    last = max((layers - start for start in range(1, layers) if ends[start] >> layers & 1), default=0)
    first = (ends[0] & ~(1 << layers)).bit_length() - 1
    middle = max(
        ((ends[start] & ~(1 << layers)).bit_length() - 1 - start for start in range(1, layers) if ends[start]),
        default=0,
    )
    first, middle = max(first, 0), max(middle, 0)
    inner = (1 << layers) - 1
    for start in range(1, layers):
        expected = (((1 << middle) - 1) << (start + 1)) & inner
        if ends[start] & inner != expected or bool(ends[start] >> layers & 1) != (layers - start <= last):
            return None
    return _Sizes(first, last, middle) if ends[0] & inner == ((1 << first) - 1) << 1 else None


def _fewest_stages(threshold: Threshold, sizes: list[_Sizes]) -> Chain | None:
    problem = threshold.problem
    counts = [problem.counts[option.group] for option in problem.options]
    by_size = sorted(range(len(sizes)), key=lambda place: (-sizes[place].middle, place))
    best: list[tuple[int, int]] | None = None
    for first, front in enumerate(sizes):
        for last, back in enumerate(sizes):
            left = list(counts)
            left[first] -= 1
            left[last] -= 1
            if min(left[first], left[last]) < 0 or not front.first or not back.last or problem.max_stages < 2:
                continue
            held = [(first, front.first), (last, back.last)]
            missing = problem.num_layers - front.first - back.last
            for place in by_size:
                while missing > 0 and left[place] and sizes[place].middle and len(held) < problem.max_stages:
                    left[place] -= 1
                    held.insert(-1, (place, sizes[place].middle))
                    missing -= sizes[place].middle
            if missing <= 0 and (best is None or len(held) < len(best)):
                best = held
    return _placed(best, problem.num_layers) if best is not None else None


def _placed(held: list[tuple[int, int]], layers: int) -> Chain:
    """The chain of options with the most layers that each may hold; what is too much is taken off, from the front."""
    surplus = sum(count for _place, count in held) - layers
    chain, start = [], 0
    for place, count in held:
        less = min(surplus, count - 1)
        surplus -= less
        chain.append(Placed(place, start, start + count - less))
        start += count - less
    return tuple(chain)
