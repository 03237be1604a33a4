# SPDX-License-Identifier: Apache-2.0
"""The index and the ranges of a stage: read where they are written, refused where the user contradicts them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from checkpoints import split_into, written_llama
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.resolve import StagePlace, partition_around, resolve_place
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange, check_ranges

LAYERS = 6
SPLIT = ("0-1", "1-4", "4-6")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, LAYERS)


@pytest.fixture(scope="module")
def split(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_into(tmp_path_factory, full, *SPLIT)


def refusal(code: ExitCode, *args: Any, of: Any = resolve_place, **options: Any) -> ZppError:
    with pytest.raises(ZppError) as refused:
        of(*args, **options)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value


def described(place: StagePlace) -> tuple[str, int, str]:
    return place.directory.name, place.stage, " ".join(map(str, place.partition))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"stage": 1},
        {"num_stages": 3},
        {"layer_range": "[1:4]"},
        {"ranges": SPLIT},
        {"stage": 1, "num_stages": 3, "layer_range": "1-4", "ranges": SPLIT},
    ],
)
def test_a_stage_directory_knows_its_place(split: Path, given: dict[str, Any]) -> None:
    assert described(resolve_place(split / "stage_1", **given)) == ("stage_1", 1, "0-1 1-4 4-6")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stage": 0}, "the stage is given as 0, but"),
        ({"num_stages": 4}, "the number of stages is given as 4, but"),
        ({"layer_range": "1-3"}, "the layer range is given as 1-3, but"),
        ({"layer_range": ""}, "'' is not a layer range"),
        ({"ranges": ("0-2", "2-4", "4-6")}, "the partition is given as 0-2 2-4 4-6, but"),
        ({"ranges": ("0-1", "1-4")}, "the partition is given as 0-1 1-4, but"),
        ({"ranges": ("0-1", "x")}, "'x' is not a layer range"),
    ],
)
def test_options_that_contradict_a_stage_directory_are_refused(
    split: Path, given: dict[str, Any], message: str
) -> None:
    fault = refusal(ExitCode.INVALID, split / "stage_1", **given)
    assert message in fault.message
    if "but" in message:
        assert str(split / "stage_1") in fault.message


def test_a_directory_of_stages_needs_the_index_of_one(split: Path) -> None:
    assert described(resolve_place(split, stage=2)) == ("stage_2", 2, "0-1 1-4 4-6")
    assert "holds 3 stages: which one" in refusal(ExitCode.USAGE, split).message
    assert "no stage_3; it holds stage_0, stage_1, stage_2" in refusal(ExitCode.INVALID, split, stage=3).message
    assert "number of stages" in refusal(ExitCode.INVALID, split, stage=2, num_stages=2).message


@pytest.mark.parametrize(
    ("given", "stage", "partition"),
    [
        ({"stage": 1, "num_stages": 3}, 1, "0-2 2-4 4-6"),
        ({"stage": 0, "num_stages": 1}, 0, "0-6"),
        ({"stage": 1, "ranges": SPLIT}, 1, "0-1 1-4 4-6"),
        ({"stage": 1, "num_stages": 3, "ranges": SPLIT}, 1, "0-1 1-4 4-6"),
        ({"stage": 1, "ranges": SPLIT, "layer_range": "1-4"}, 1, "0-1 1-4 4-6"),
        ({"stage": 1, "num_stages": 3, "layer_range": "1-5"}, 1, "0-1 1-5 5-6"),
        ({"stage": 2, "num_stages": 3, "layer_range": "5-6"}, 2, "0-3 3-5 5-6"),
    ],
)
def test_a_full_checkpoint_is_divided_as_given(full: Path, given: dict[str, Any], stage: int, partition: str) -> None:
    assert described(resolve_place(full, **given)) == ("model", stage, partition)


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({}, ExitCode.USAGE, "which stage is this to be"),
        ({"num_stages": 3}, ExitCode.USAGE, "which stage is this to be"),
        ({"stage": 1}, ExitCode.USAGE, "how many stages"),
        ({"stage": 1, "layer_range": "2-4"}, ExitCode.USAGE, "how many stages"),
        ({"stage": 0, "num_stages": 0}, ExitCode.USAGE, "how many stages"),
        ({"stage": 3, "num_stages": 3}, ExitCode.USAGE, "no stage 3 of 3"),
        ({"stage": -1, "num_stages": 3}, ExitCode.USAGE, "no stage -1 of 3"),
        ({"stage": 3, "ranges": SPLIT}, ExitCode.USAGE, "no stage 3 of 3"),
        ({"stage": 0, "num_stages": 7}, ExitCode.INVALID, "7 stages are more than the model's 6 layers"),
        ({"stage": 0, "num_stages": 2, "ranges": SPLIT}, ExitCode.INVALID, "3 layer ranges are given for 2 stages"),
        ({"stage": 1, "ranges": ("0-1", "2-6")}, ExitCode.INVALID, "no stage owns layer 1"),
        ({"stage": 1, "ranges": SPLIT, "layer_range": "2-4"}, ExitCode.INVALID, "layer range is given as 2-4"),
        ({"stage": 1, "num_stages": 3, "layer_range": "0-2"}, ExitCode.INVALID, "cannot own layers 0-2 of 6"),
        ({"stage": 1, "num_stages": 3, "layer_range": "two"}, ExitCode.INVALID, "'two' is not a layer range"),
        ({"stage": 1, "num_stages": 3, "layer_range": ""}, ExitCode.INVALID, "'' is not a layer range"),
    ],
)
def test_what_is_missing_or_not_valid_is_named(full: Path, given: dict[str, Any], code: ExitCode, message: str) -> None:
    assert message in refusal(code, full, **given).message


def test_a_contradiction_between_flags_is_not_blamed_on_the_checkpoint(full: Path) -> None:
    fault = refusal(ExitCode.INVALID, full, stage=1, ranges=SPLIT, layer_range="2-4")
    assert str(full) not in fault.message


def test_no_model_at_all(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(ExitCode.INVALID, tmp_path / "none", stage=0, num_stages=1).message


def exists(own: LayerRange, stage: int, num_stages: int, num_layers: int) -> bool:
    """Whether any partition has that range at that index, by trying them all."""
    every = ((0, *cuts, num_layers) for cuts in combinations(range(1, num_layers), num_stages - 1))
    return any((ends[stage], ends[stage + 1]) == own for ends in every)


@given(st.integers(1, 7), st.integers(1, 5), st.data())
def test_a_partition_around_a_range_is_found_exactly_when_there_is_one(
    num_layers: int, num_stages: int, data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, num_stages - 1))
    own = LayerRange(data.draw(st.integers(0, 8)), data.draw(st.integers(0, 8)))
    if not exists(own, stage, num_stages, num_layers):
        assert (
            "cannot own" in refusal(ExitCode.INVALID, own, stage, num_stages, num_layers, of=partition_around).message
        )
        return
    partition = partition_around(own, stage, num_stages, num_layers)
    assert partition[stage] == own
    assert check_ranges([str(part) for part in partition], num_layers, num_stages)[1] == []
