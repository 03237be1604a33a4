# SPDX-License-Identifier: Apache-2.0
"""The parts that are measured tell the time of every type of layer, whatever the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange
from zpptool.profiling.parts import MOST_LAYERS, PartsPlan, plan_parts, solve

KINDS = ("attention", "mamba", "attention_moe")
models = st.lists(st.sampled_from(KINDS), min_size=3, max_size=24)


def seconds_of(plan: PartsPlan, layers: dict[str, float], step: float, embedding: float, head: float) -> list[float]:
    """The time of each part, if these were the true times."""
    return [
        step
        + sum(layers[kind] for kind in plan.types[own.start : own.end])
        + embedding * (own.start == 0)
        + head * (own.end == len(plan.types))
        for own in plan.parts
    ]


def test_a_uniform_model_is_measured_by_four_parts() -> None:
    plan = plan_parts(["attention"] * 30)
    assert plan.parts == (LayerRange(0, 1), LayerRange(29, 30), LayerRange(1, 6), LayerRange(1, 2))
    assert [plan.partition(part)[1] for part in range(4)] == [0, 1, 1, 1]
    assert plan.parts[plan.base] == LayerRange(1, 2)


@given(models)
def test_every_type_between_the_ends_gets_its_true_time(types: list[str]) -> None:
    plan = plan_parts(types)
    truth = {kind: 0.5 + number for number, kind in enumerate(KINDS)}
    found = solve(plan, seconds_of(plan, truth, step=0.25, embedding=0.125, head=2.0))
    assert set(found.layers) == set(types)
    between = set(types[1:-1])
    for kind in between:
        assert found.layers[kind] == pytest.approx(truth[kind])
    if len(types) > 3 and types[0] in between and types[-1] in between and plan.parts[plan.base].start:
        assert (found.step, found.embedding, found.lm_head) == pytest.approx((0.25, 0.125, 2.0))


@given(models)
def test_a_stage_with_an_end_takes_what_its_parts_take(types: list[str]) -> None:
    """A type beside an end only, the step and the end are in one stage: their sum is what has to be right."""
    plan = plan_parts(types)
    truth = {kind: 0.5 + number for number, kind in enumerate(KINDS)}
    seconds = seconds_of(plan, truth, step=0.25, embedding=0.125, head=2.0)
    found = solve(plan, seconds)
    for part, end in ((plan.first, found.embedding), (plan.last, found.lm_head)):
        own = plan.parts[part]
        layers = sum(found.layers[kind] for kind in types[own.start : own.end])
        if types[0] == types[-1] or part == plan.first:
            assert found.step + layers + end == pytest.approx(seconds[part])


@given(models)
def test_every_part_is_a_stage_of_its_partition(types: list[str]) -> None:
    plan = plan_parts(types)
    for number, own in enumerate(plan.parts):
        partition, stage = plan.partition(number)
        assert partition[stage] == own
        assert [layer for one in partition for layer in range(one.start, one.end)] == list(range(len(types)))
        assert own.count <= 2 * MOST_LAYERS + 2


@given(models, st.sets(st.integers(1, 23)))
def test_no_part_begins_or_ends_between_joined_layers(types: list[str], joined: set[int]) -> None:
    if len([layer for layer in range(1, len(types)) if layer not in joined]) < 2:
        with pytest.raises(ZppError, match="cannot be measured layer by layer"):
            plan_parts(types, joined)
        return
    plan = plan_parts(types, joined)
    for own in plan.parts:
        assert own.start not in joined
        assert own.end not in joined or own.end == len(types)
    assert set(solve(plan, [1.0] * len(plan.parts)).layers) == set(types)


def test_noise_never_makes_a_time_negative() -> None:
    plan = plan_parts(["attention"] * 6)
    found = solve(plan, [1.0 - 0.1 * part for part in range(len(plan.parts))])
    assert min(found.step, found.embedding, found.lm_head, *found.layers.values()) >= 0


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_that_is_too_short_is_refused(layers: int) -> None:
    with pytest.raises(ZppError, match="cannot be measured layer by layer") as refused:
        plan_parts(["attention"] * layers)
    assert refused.value.exit_code is ExitCode.INVALID
