# SPDX-License-Identifier: Apache-2.0
"""The roll call: stages that do not make one pipeline are refused, and every reason is named."""

from __future__ import annotations

import msgspec
import pytest

from zpptool.ring.head.roll_call import disagreements
from zpptool.ring.messages import StageFacts

AGREED = {"model digest": "abc", "dtype": "bfloat16"}


def facts(stage: int, start: int, end: int, **changed: str | None) -> StageFacts:
    values = {**AGREED, **{name.replace("_", " "): value for name, value in changed.items()}}
    agreed = {name: value for name, value in values.items() if value is not None}
    return StageFacts(stage, f"host{stage}", 100 + stage, 3, (start, end), agreed)


def reasons(*stages: StageFacts, num_stages: int = 3, num_layers: int = 6) -> list[str]:
    return disagreements(num_stages, num_layers, AGREED, stages)


def test_stages_that_fit_give_no_reason() -> None:
    assert reasons(facts(0, 0, 2), facts(1, 2, 5), facts(2, 5, 6)) == []


@pytest.mark.parametrize(
    ("answered", "text"),
    [
        ((), "met no stage"),
        ((0, 1), "met stages 0, 1,"),
        ((1, 0, 2), "met stages 1, 0, 2,"),
        ((0, 1, 1), "met stages 0, 1, 1,"),
        ((0, 1, 2, 3), "met stages 0, 1, 2, 3,"),
        ((1, 2), "met stages 1, 2,"),
    ],
)
def test_stages_in_the_wrong_order_are_the_only_reason(answered: tuple[int, ...], text: str) -> None:
    found = reasons(*(facts(stage, 0, 9, dtype="float16") for stage in answered))
    assert len(found) == 1
    assert text in found[0]
    assert "the ring of 3 stages is 0 to 2" in found[0]


@pytest.mark.parametrize(
    ("ranges", "texts"),
    [
        (((0, 2), (3, 5), (5, 6)), ["stage 1: no stage owns layer 2, between stage 0 and 3-5"]),
        (((0, 3), (2, 5), (5, 6)), ["stage 1: 2-5 overlaps stage 0's 0-3: both own layer 2"]),
        (((0, 2), (2, 4), (4, 5)), ["no stage owns layer 5 of the model's 6 layers"]),
        (((1, 2), (2, 4), (4, 6)), ["no stage owns layer 0 ahead of it"]),
        (((0, 2), (2, 5), (5, 7)), ["stage 2: 5-7 goes past the model"]),
        (((0, 2), (2, 2), (2, 6)), ["stage 1: 2-2 holds no layer"]),
        (((0, 2), (4, 3), (2, 6)), ["stage 1: 4-3 ends before it starts"]),
        (((0, 2), (-1, 3), (3, 6)), ["stage 1: '-1-3' is not a layer range"]),
        (((0, 1), (2, 3), (4, 6)), ["no stage owns layer 1,", "no stage owns layer 3,"]),
    ],
)
def test_ranges_that_do_not_join_are_named(ranges: tuple[tuple[int, int], ...], texts: list[str]) -> None:
    found = reasons(*(facts(stage, *own) for stage, own in enumerate(ranges)))
    for text in texts:
        assert any(text in reason for reason in found), found


def test_every_stage_that_differs_is_named_with_both_values() -> None:
    found = reasons(facts(0, 0, 2), facts(1, 2, 5, dtype="float16"), facts(2, 5, 6, dtype="float32", model_digest="x"))
    assert found == [
        "stage 1 (host1, pid 101) has dtype float16, the head has bfloat16",
        "stage 2 (host2, pid 102) has dtype float32, the head has bfloat16",
        "stage 2 (host2, pid 102) has model digest x, the head has abc",
    ]


def test_a_value_that_only_one_side_has_is_a_difference_too() -> None:
    found = reasons(facts(0, 0, 2, dtype=None), facts(1, 2, 5, LoRA="True"), facts(2, 5, 6))
    assert found == [
        "stage 0 (host0, pid 100) has dtype nothing, the head has bfloat16",
        "stage 1 (host1, pid 101) has LoRA True, the head has nothing",
    ]


def test_a_stage_with_another_number_of_stages_is_named() -> None:
    four = msgspec.structs.replace(facts(2, 5, 6), num_stages=4)
    assert reasons(facts(0, 0, 2), facts(1, 2, 5), four) == ["stage 2 (host2, pid 102) counts 4 stages, the head 3"]


def test_reasons_of_both_kinds_are_named_together() -> None:
    found = reasons(facts(0, 0, 2), facts(1, 3, 5, dtype="float16"), facts(2, 5, 6))
    assert len(found) == 2


def test_stages_that_know_different_commits_are_refused_and_a_path_knows_none() -> None:
    one, two = "hf://org/name@1", "hf://org/name@2"
    fits = [facts(0, 0, 2), facts(1, 2, 5, model_source=one), facts(2, 5, 6, model_source=one)]
    assert reasons(*fits) == []
    (found,) = reasons(*fits[:2], facts(2, 5, 6, model_source=two))
    assert f"stage 2 (host2, pid 102) has the model {two}, stage 1 (host1, pid 101) has {one}" in found
    assert "--revision" in found
