# SPDX-License-Identifier: Apache-2.0
"""What is said to be stable comes out the same in another profile; what is not is marked."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.profiling.agreement import FEWEST_ROUNDS, TOLERANCE, agree, is_stable

times = st.floats(1e-6, 10)


@given(times, st.integers(FEWEST_ROUNDS, 40))
def test_rounds_without_noise_are_stable(value: float, count: int) -> None:
    assert is_stable([value] * count)


@given(times, st.integers(0, FEWEST_ROUNDS - 1))
def test_few_rounds_are_not(value: float, count: int) -> None:
    assert not is_stable([value] * count)


@given(times, st.integers(4, 20))
def test_a_drift_is_not_stable(value: float, half: int) -> None:
    assert not is_stable([value] * half + [value * 1.2] * half)


@given(st.lists(times, min_size=FEWEST_ROUNDS, max_size=30))
def test_the_unit_does_not_matter(rounds: list[float]) -> None:
    assert is_stable(rounds) == is_stable([one * 2.0**10 for one in rounds])


def test_a_difference_that_is_lost_in_noise_is_not_stable() -> None:
    assert not is_stable([0.0] * 10)
    assert not is_stable([-1.0] * 10)


def test_one_disturbed_round_does_not_matter() -> None:
    assert is_stable([1.0, 1.001, 0.999] * 4 + [30.0])


@pytest.mark.parametrize("noise", [0.005, 0.02, 0.05, 0.1, 0.3])
def test_two_profiles_that_are_both_stable_agree(noise: float) -> None:
    """Of 400 pairs of simulated profiles, one in twenty of those that are said to be stable may differ by more; or one
    in a hundred of all pairs, where hardly any are stable, and those by chance."""
    draw = random.Random(7)
    stable = differ = 0
    for _ in range(400):
        pair = [[draw.gauss(1.0, noise) for _round in range(12)] for _profile in range(2)]
        if all(map(is_stable, pair)):
            stable += 1
            differ += not agree(*map(median, pair))
    assert differ <= max(stable / 20, 4)
    if noise <= 0.02:
        assert stable > 300
    if noise >= 0.3:
        assert stable < 20


def test_agreement_is_relative_to_the_smaller_value() -> None:
    assert agree(1.0, 1.0 + TOLERANCE * 0.99)
    assert not agree(1.0, 1.0 + TOLERANCE * 1.01)
    assert not agree(0.0, 1e-9)
