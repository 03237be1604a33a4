# SPDX-License-Identifier: Apache-2.0
"""The planner's chain is the best one: it equals independent solvers in value and in feasibility."""

from __future__ import annotations

import random

import pytest
from planning import brute_force, evaluated, least_period, random_problem

from zpptool.planner.chain import NoChain, best_chain
from zpptool.planner.problem import NEVER, Problem, is_possible, value
from zpptool.planner.relaxed import priced_chain
from zpptool.planner.threshold import Threshold


def check_against_brute_force(problem: Problem) -> bool:
    """Compare one answer with that of all chains; whether there is one."""
    expected, found = brute_force(problem), best_chain(problem)
    if isinstance(found, NoChain):
        assert expected is None
        assert found.proven
        return False
    assert expected is not None
    assert is_possible(problem, found.chain)
    assert found.value == expected[0] == evaluated(problem, found.chain) == value(problem, found.chain)
    assert found.gap == 0
    assert found.tie_proven
    return True


def check_against_subsets(problem: Problem) -> None:
    expected, found = least_period(problem), best_chain(problem)
    if isinstance(found, NoChain):
        assert expected == NEVER
        assert found.proven
    else:
        assert is_possible(problem, found.chain)
        assert found.value.period == expected
        assert found.gap == 0


def of_width_one(rng: random.Random) -> Problem:
    while True:
        problem = random_problem(rng, most_devices=7, most_layers=12)
        if all(option.width == 1 for option in problem.options):
            return problem


def test_small_instances_equal_brute_force() -> None:
    rng = random.Random(1)
    solved = [check_against_brute_force(random_problem(rng, 5, 8)) for _ in range(300)]
    assert 0.6 < sum(solved) / len(solved) < 0.95, "both kinds of answers are tested"


def test_larger_instances_equal_a_programme_over_subsets() -> None:
    rng = random.Random(2)
    for _ in range(40):
        check_against_subsets(of_width_one(rng))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_4500_small_instances_equal_brute_force() -> None:
    rng = random.Random(3)
    for _ in range(4500):
        check_against_brute_force(random_problem(rng, 5, 8))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_500_larger_instances_equal_a_programme_over_subsets() -> None:
    rng = random.Random(4)
    for _ in range(500):
        check_against_subsets(of_width_one(rng))


def test_prices_of_devices_prove_only_what_is_true() -> None:
    rng, outcomes = random.Random(6), {"refuted": 0, "found": 0, "open": 0}
    for _ in range(120):
        problem = random_problem(rng, 5, 7)
        expected = brute_force(problem)
        least = expected[0].period if expected else NEVER
        for period in {max(0, least - 1), least // 2, least, 2 * least} if expected else {100, 1000}:
            found = priced_chain(Threshold(problem, period))
            if found.chain is not None:
                outcomes["found"] += 1
                assert is_possible(problem, found.chain)
                assert value(problem, found.chain).period <= period
            elif found.proven:
                outcomes["refuted"] += 1
                assert period < least
            else:
                outcomes["open"] += 1
    assert outcomes["refuted"] > outcomes["open"]
    assert outcomes["found"] > outcomes["open"]
