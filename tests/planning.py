# SPDX-License-Identifier: Apache-2.0
"""Random planning problems, and two solvers that share nothing with the planner's search."""

from __future__ import annotations

import random
from collections.abc import Iterator

from zpptool.planner.problem import NEVER, NOISE_PERCENT, Chain, Placed, Problem, StageOption, Value


def random_problem(rng: random.Random, most_devices: int, most_layers: int) -> Problem:
    """A problem with uneven bytes, times, links and memory; now and then without a solution."""
    layers = rng.randint(1, most_layers)
    counts = _counts(rng, most_devices)
    groups = len(counts)
    sizes = [rng.randint(1, 9) for _ in range(layers)]
    work = [rng.randint(1, 20) for _ in range(layers)]
    share = rng.choice((0.6, 1.0, 1.0))
    legal = {0, layers, *(cut for cut in range(1, layers) if rng.random() < share)}
    tightness = rng.uniform(0.7, 4)
    options = []
    for group, count in enumerate(counts):
        for width in [1, 2] if count > 1 and rng.random() < 0.3 else [1]:
            memory = int(width * tightness * sum(sizes) / sum(counts) * rng.uniform(0.5, 1.6)) + rng.randint(0, 4)
            speed = rng.randint(1, 6) * width
            options.append(
                StageOption(group, width, _times(rng, sizes, work, legal, memory, speed), _moved(rng, sizes))
            )
    linked = rng.choice((1.0, 1.0, 1.0, 0.8))
    hops = [[rng.randint(0, 25) if rng.random() < linked else NEVER for _ in counts] for _ in counts]
    returns = [[rng.randint(0, 25) if rng.random() < linked else NEVER for _ in counts] for _ in counts]
    delays = [[min(NEVER, hop + rng.randint(0, 5)) for hop in row] for row in hops]
    return_delays = [[min(NEVER, hop + rng.randint(0, 5)) for hop in row] for row in returns]
    most = rng.choice((sum(counts), max(1, sum(counts) - 1), groups))
    return Problem(layers, counts, tuple(options), hops, delays, returns, return_delays, most)


def _counts(rng: random.Random, most: int) -> tuple[int, ...]:
    left = rng.randint(1, most)
    counts = []
    while left:
        counts.append(rng.randint(1, left) if rng.random() < 0.6 else 1)
        left -= counts[-1]
    return tuple(counts)


def _times(
    rng: random.Random, sizes: list[int], work: list[int], legal: set[int], memory: int, speed: int
) -> list[list[int]]:
    layers = len(sizes)
    head, embedding, fixed = rng.randint(0, 9), rng.randint(0, 5), rng.randint(0, 4)
    odd = rng.random() < 0.2  # times that do not grow with the range
    times = [[NEVER] * (layers + 1) for _ in range(layers + 1)]
    for start in range(layers):
        for end in range(start + 1, layers + 1):
            needed = sum(sizes[start:end]) + (head if end == layers else 0) + (embedding if start == 0 else 0)
            if {start, end} <= legal and needed <= memory:
                ends = (head if end == layers else 0) + (embedding if start == 0 else 0)
                times[start][end] = fixed + (sum(work[start:end]) * 4 + ends) // speed
                if odd:
                    times[start][end] = max(0, times[start][end] + rng.randint(-6, 6))
    return times


def _moved(rng: random.Random, sizes: list[int]) -> list[int]:
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + (size if rng.random() < 0.5 else 0))
    return sums


def brute_force(problem: Problem) -> tuple[Value, Chain] | None:
    """The best of all chains, each of which is evaluated by itself; None if there is none."""
    best: tuple[Value, Chain] | None = None
    for chain in all_chains(problem, (), list(problem.counts)):
        reached = evaluated(problem, chain)
        if reached is not None and (best is None or reached < best[0]):
            best = reached, chain
    return best


def all_chains(problem: Problem, begun: Chain, left: list[int]) -> Iterator[Chain]:
    """Every chain that covers all layers with the devices that are left, whatever its times are."""
    start = begun[-1].end if begun else 0
    if start == problem.num_layers:
        yield begun
        return
    if len(begun) == problem.max_stages:
        return
    for place, option in enumerate(problem.options):
        if left[option.group] < option.width:
            continue
        if begun and problem.hops[problem.options[begun[-1].option].group][option.group] >= NEVER:
            continue
        left[option.group] -= option.width
        for end in range(start + 1, problem.num_layers + 1):
            if option.times[start][end] < NEVER:
                yield from all_chains(problem, (*begun, Placed(place, start, end)), left)
        left[option.group] += option.width


def evaluated(problem: Problem, chain: Chain) -> Value | None:
    """The value of a chain by its definition; None where it is not possible."""
    groups = [problem.options[stage.option].group for stage in chain]
    stages = [problem.options[stage.option].times[stage.start][stage.end] for stage in chain]
    links, delay = [], 0
    for place in range(len(groups) - 1):
        links.append(problem.hops[groups[place]][groups[place + 1]])
        delay += problem.delays[groups[place]][groups[place + 1]]
    links.append(problem.returns[groups[-1]][groups[0]])
    delay += problem.return_delays[groups[-1]][groups[0]]
    period = max(stages + links)
    if period >= NEVER:
        return None
    exposure = sum(max(0, time * (100 + NOISE_PERCENT) - period * 100) for time in stages + links)
    moved = sum(
        problem.options[stage.option].moved[stage.end] - problem.options[stage.option].moved[stage.start]
        for stage in chain
    )
    return Value(period, sum(stages) + delay, exposure, moved)


def least_period(problem: Problem) -> int:
    """The least period of any chain, by a dynamic programme over subsets of single devices; NEVER if there is none.

    Devices of one group are distinguished here, and options of width 2 are not known.
    """
    owner = [group for group, count in enumerate(problem.counts) for _ in range(count)]
    table = {option.group: option.times for option in problem.options}
    best = NEVER
    for first in sorted(set(owner)):
        reached: dict[tuple[int, int, int], int] = {}
        for device, group in enumerate(owner):
            if group == first:
                for end in range(1, problem.num_layers + 1):
                    if (time := table[group][0][end]) < NEVER:
                        reached[1 << device, device, end] = time
        for _ in range(problem.max_stages):
            grown: dict[tuple[int, int, int], int] = {}
            for (used, last, at), period in reached.items():
                if at == problem.num_layers:
                    best = min(best, max(period, problem.returns[owner[last]][first]))
                    continue
                for device, group in enumerate(owner):
                    hop = problem.hops[owner[last]][group]
                    if used >> device & 1 or hop >= best:
                        continue
                    for end in range(at + 1, problem.num_layers + 1):
                        time = max(period, hop, table[group][at][end])
                        key = (used | 1 << device, device, end)
                        if time < best and time < grown.get(key, NEVER):
                            grown[key] = time
            reached = grown
    return best
