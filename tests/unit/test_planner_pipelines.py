# SPDX-License-Identifier: Apache-2.0
"""Several pipelines: as good as every choice of chains, and found where one pipeline is slower than two."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import combinations

import pytest
from planning import all_chains, evaluated, random_problem

from zpptool.planner import pipelines
from zpptool.planner.chain import NoChain, best_chain
from zpptool.planner.pipelines import Pipelines, best_pipelines
from zpptool.planner.problem import Problem, StageOption, devices_used, is_possible, value

pytest.importorskip("highspy")


def brute_force_rate(problem: Problem, most: int) -> float:
    """The highest rate of up to two pipelines, of every pair of chains."""
    best: dict[tuple[int, ...], float] = {}
    for chain in all_chains(problem, (), list(problem.counts)):
        reached = evaluated(problem, chain)
        if reached is not None:
            used = devices_used(problem, chain)
            best[used] = max(best.get(used, 0.0), 1 / max(1, reached.period))
    rates = list(best.items())
    single = max((rate for _used, rate in rates), default=0.0)
    pairs = [*combinations(rates, 2), *((item, item) for item in rates)] if most > 1 else []
    fitting = (
        one[1] + two[1]
        for one, two in pairs
        if all(a + b <= count for a, b, count in zip(one[0], two[0], problem.counts, strict=True))
    )
    return max(single, max(fitting, default=0.0))


def check(problem: Problem, found: Pipelines | NoChain) -> float:
    """The rate of an answer, after checking that it is possible."""
    if isinstance(found, NoChain):
        return 0.0
    assert all(is_possible(problem, chain) for chain in found.chains)
    used = [devices_used(problem, chain) for chain in found.chains]
    assert all(sum(each) <= count for each, count in zip(zip(*used, strict=True), problem.counts, strict=True))
    assert found.rate == pytest.approx(sum(1 / max(1, value(problem, chain).period) for chain in found.chains))
    return found.rate


def test_two_pipelines_equal_brute_force() -> None:
    rng, several = random.Random(11), 0
    for _ in range(150):
        problem = random_problem(rng, 4, 5)
        found = best_pipelines(problem, 2)
        assert check(problem, found) == pytest.approx(brute_force_rate(problem, 2))
        if isinstance(found, Pipelines):
            assert found.gap == pytest.approx(0)
            several += len(found.chains) > 1
    assert several > 5


def test_generated_columns_come_close_and_the_bound_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "MOST_DIVISIONS", 0)
    rng, ratios = random.Random(12), []
    for _ in range(40):
        problem = random_problem(rng, 4, 5)
        best, found = brute_force_rate(problem, 2), best_pipelines(problem, 2)
        reached = check(problem, found)
        assert reached <= best * (1 + 1e-9)
        if isinstance(found, Pipelines):
            assert found.bound >= best * (1 - 1e-9)
            ratios.append(reached / best)
    assert min(ratios) > 0.7
    assert sum(ratios) / len(ratios) > 0.97


def two_regions(rng: random.Random, devices: int, layers: int, slow: int) -> Problem:
    """Two regions of equal devices, with links between them that take `slow` a step."""
    work = [rng.randint(8, 12) for _ in range(layers)]
    times = [[sum(work[a:b]) if b > a else 1 << 62 for b in range(layers + 1)] for a in range(layers + 1)]
    flat = [0] * (layers + 1)
    options = tuple(StageOption(group, 1, times, flat) for group in (0, 1))
    hops = [[1, slow], [slow, 1]]
    return Problem(layers, (devices, devices), options, hops, hops, hops, hops, 2 * devices)


@pytest.mark.parametrize("devices", [3, 8, 20])
def test_two_pipelines_beat_one_across_a_slow_link(devices: int) -> None:
    rng = random.Random(devices)
    problem = two_regions(rng, devices, layers=24, slow=10_000)
    one, two = best_chain(problem), best_pipelines(problem, 2)
    assert not isinstance(one, NoChain)
    assert isinstance(two, Pipelines)
    assert len(two.chains) == 2
    assert check(problem, two) == pytest.approx(2 / one.value.period)
    regions = [{problem.options[stage.option].group for stage in chain} for chain in two.chains]
    assert sorted(map(len, regions)) == [1, 1]


def test_the_solver_prints_nothing() -> None:
    code = "from zpptool.planner.master import maximised; print(maximised([1.0], [[1]], [2.0], 3.0, whole=True)[0])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "[2.0]\n"
