# SPDX-License-Identifier: Apache-2.0
"""Layer ranges: what is accepted, what is refused and with which message, and that the default partition is vLLM's."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.errors import ExitCode, ZppError
from zpptool.partition import (
    FaultCode,
    LayerRange,
    check_ranges,
    even_partition,
    parse_range,
    resolve_partition,
    split_range_words,
    vllm_layer_partition,
)

# (layers, stages) -> layers a stage, as vllm.distributed.utils.get_pp_indices of vLLM 0.32 divides them.
KNOWN_VLLM_SHARES = {
    (32, 4): [8, 8, 8, 8],
    (30, 4): [7, 8, 8, 7],
    (30, 3): [10, 10, 10],
    (32, 5): [6, 6, 7, 7, 6],
    (5, 3): [2, 2, 1],
    (4, 3): [1, 2, 1],
    (7, 2): [4, 3],
    (61, 8): [7, 7, 8, 8, 8, 8, 8, 7],
    (63, 8): [8, 8, 8, 8, 8, 8, 8, 7],
    (1, 1): [1],
    (3, 3): [1, 1, 1],
}


def codes(texts: list[str], total_layers: int, num_stages: int | None = None) -> list[str]:
    return [str(fault.code) for fault in check_ranges(texts, total_layers, num_stages)[1]]


@pytest.mark.parametrize("text", ["0-8", "[0-8]", "0:8", " 0 - 8 ", "[ 0 : 8 ]", "00-08"])
def test_every_accepted_form_is_the_same_range(text: str) -> None:
    assert parse_range(text) == LayerRange(0, 8)


@pytest.mark.parametrize(
    "text",
    ["", "8", "0-", "-8", "0-8-16", "a-b", "0..8", "[0-8", "0-8]", "-1-8", "0.5-8", "0-8x", "٠-٨", "0-" + "9" * 5000],
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ZppError) as refused:
        parse_range(text)
    assert refused.value.exit_code is ExitCode.INVALID
    assert repr(text) in refused.value.message


@given(st.integers(0, 10**8), st.integers(0, 10**8))
def test_a_range_reads_back_as_it_is_written(start: int, end: int) -> None:
    assert parse_range(str(LayerRange(start, end))) == LayerRange(start, end)


@pytest.mark.parametrize(
    ("arguments", "ranges"),
    [
        (["0-8", "8-16"], ["0-8", "8-16"]),
        (["0-8,8-16"], ["0-8", "8-16"]),
        (["0-8, 8-16", "16-24"], ["0-8", "8-16", "16-24"]),
        (["0 - 8 8 : 16 [ 16 - 24 ]"], ["0-8", "8:16", "[16-24]"]),
        (["0-8", "", "8-16"], ["0-8", "", "8-16"]),
        ([], []),
    ],
)
def test_arguments_of_a_command_line_become_ranges(arguments: list[str], ranges: list[str]) -> None:
    assert split_range_words(arguments) == ranges


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0-8", "8-16", "16-24", "24-32"], []),
        (["0-1", "1-31", "31-32"], []),
        (["0-32"], []),
        (["0-8", "x", "16-32"], ["format", "gap"]),
        (["0-16", "16-16", "16-32"], ["empty"]),
        (["0-16", "16-33"], ["bounds"]),
        (["0-32", "32-40"], ["bounds"]),
        (["0-16", "32-16"], ["order", "coverage"]),
        (["16-32", "0-16"], ["order"]),
        (["0-17", "15-32"], ["overlap"]),
        (["0-32", "0-32", "0-32"], ["overlap", "overlap", "overlap"]),
        (["0-8", "10-32"], ["gap"]),
        (["1-32"], ["coverage"]),
        (["0-31"], ["coverage"]),
        (["2-30"], ["coverage", "coverage"]),
        ([], ["coverage"]),
        (["40-50"], ["bounds", "coverage"]),
        (["0-16", "4-8", "16-32"], ["overlap"]),
    ],
)
def test_each_fault_has_its_code(texts: list[str], expected: list[str]) -> None:
    assert codes(texts, 32) == expected


def test_every_fault_is_listed_with_stage_and_numbers() -> None:
    texts = ["1-8", "6-16", "nonsense", "20-20", "30-22", "18-24", "26-99"]
    ranges, faults = check_ranges(texts, 32, num_stages=4)
    assert len(ranges) == 6
    assert {fault.code for fault in faults} == set(FaultCode)
    for fault in faults:
        if fault.stage is not None:
            assert f"stage {fault.stage}" in fault.message
    messages = "\n".join(fault.message for fault in faults)
    for fact in ("'nonsense'", "20-20", "30-22", "26-99", "32 layers", "layers 6 to 7", "layers 16 to 17", "layer 0",
                 "layers 24 to 25", "7 layer ranges are given for 4 stages"):  # fmt: skip
        assert fact in messages


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 66), st.integers(0, 66)), max_size=7))
def test_there_is_a_fault_exactly_when_the_layers_are_not_owned_once_and_in_order(
    total: int, pairs: list[tuple[int, int]]
) -> None:
    owned = [layer for start, end in pairs for layer in range(start, end)]
    is_partition = owned == list(range(total)) and all(start < end for start, end in pairs)
    assert (not codes([f"{start}-{end}" for start, end in pairs], total)) == is_partition


@given(st.data())
def test_any_cut_of_the_layers_is_accepted(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 200))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, total - 1)), max_size=20)) - {total})
    edges = [0, *cuts, total]
    texts = [f"{start}-{end}" for start, end in pairwise(edges)]
    partition = resolve_partition(total, len(texts), texts)
    assert [str(item) for item in partition] == texts


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_even_partition_covers_every_layer_in_shares_that_differ_by_one(layers: int, stages: int) -> None:
    if stages > layers:
        with pytest.raises(ZppError) as refused:
            even_partition(layers, stages)
        assert f"{stages} stages are more than the model's {layers} layer" in refused.value.message
        return
    partition = even_partition(layers, stages)
    assert codes([str(item) for item in partition], layers, stages) == []
    shares = {item.count for item in partition}
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("asked", "shares"), KNOWN_VLLM_SHARES.items())
def test_the_even_partition_has_vllms_known_shares(asked: tuple[int, int], shares: list[int]) -> None:
    assert [item.count for item in even_partition(*asked)] == shares


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_the_even_partition_is_vllms_for_every_model_and_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    get_pp_indices = pytest.importorskip("vllm.distributed.utils").get_pp_indices
    monkeypatch.delenv("VLLM_PP_LAYER_PARTITION", raising=False)
    for layers in range(1, 129):
        for stages in range(1, layers + 1):
            theirs = tuple(get_pp_indices(layers, stage, stages) for stage in range(stages))
            assert even_partition(layers, stages) == theirs, f"{layers} layers, {stages} stages"


def test_the_partition_is_passed_to_vllm_as_layer_counts() -> None:
    assert vllm_layer_partition(even_partition(30, 4)) == "7,8,8,7"


def test_ranges_that_are_wrong_are_refused_with_every_fault_in_one_message() -> None:
    with pytest.raises(ZppError) as refused:
        resolve_partition(32, 3, ["0-8", "6-16"])
    assert refused.value.exit_code is ExitCode.INVALID
    for fact in ("layers 6 to 7", "layers 16 to 31", "2 layer ranges are given for 3 stages"):
        assert fact in refused.value.message


def test_neither_ranges_nor_a_count_is_refused() -> None:
    with pytest.raises(ZppError) as refused:
        resolve_partition(32)
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(("layers", "stages"), [(0, 1), (-1, 1), (8, 0), (8, -2)])
def test_counts_below_one_are_refused(layers: int, stages: int) -> None:
    with pytest.raises(ZppError, match="at least one"):
        resolve_partition(layers, stages)
    with pytest.raises(ZppError, match="at least one"):
        check_ranges(["0-8"], layers, stages)
