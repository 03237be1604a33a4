# SPDX-License-Identifier: Apache-2.0
"""The cost of a step is found again from steps that it was made for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.engines.vllm.core.step_cost import FIRST_TOKENS, Cost, StepCost


def test_before_anything_is_measured_a_fixed_cost_of_some_tokens_is_assumed() -> None:
    cost = StepCost().cost
    assert cost.fixed / cost.per_token == FIRST_TOKENS


@given(
    fixed=st.floats(1e-4, 0.1), per_token=st.floats(1e-6, 1e-2), per_pair=st.floats(0.0, 1e-6), seed=st.integers(0, 99)
)
def test_costs_are_found_again(fixed: float, per_token: float, per_pair: float, seed: int) -> None:
    true, fit, chance = Cost(fixed, per_token, per_pair), StepCost(), random.Random(seed)
    for _ in range(200):
        tokens = chance.choice([1, 8, 64, 512, 2048])
        pairs = tokens * chance.randrange(1, 4096)
        fit.measured(tokens, pairs, true.seconds(tokens, pairs) * chance.uniform(0.97, 1.03))
    for tokens, context in ((8, 100), (256, 512), (2048, 1024)):
        expected = true.seconds(tokens, tokens * context)
        assert fit.cost.seconds(tokens, tokens * context) == pytest.approx(expected, rel=0.15)


@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 10**7), st.floats(0.0, 10.0)), max_size=50))
def test_no_term_is_ever_negative(steps: list[tuple[int, int, float]]) -> None:
    fit = StepCost()
    for tokens, pairs, seconds in steps:
        fit.measured(tokens, pairs, seconds)
    assert min(fit.cost.fixed, fit.cost.per_token, fit.cost.per_pair) >= 0.0


def test_a_machine_that_becomes_slower_is_followed() -> None:
    fit = StepCost()
    for factor in (1.0, 3.0):
        for _ in range(200):
            for tokens in (8, 512):
                fit.measured(tokens, 0, factor * (0.01 + 0.001 * tokens))
    assert fit.cost.seconds(256, 0) == pytest.approx(3 * (0.01 + 0.256), rel=0.1)
