# SPDX-License-Identifier: Apache-2.0
"""Stages that share a GPU share its memory, or are refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.gpu_sharing import KV_BYTES, ROOM_BYTES, UTILIZATION, share_words, stages_on
from zpptool.errors import ExitCode, ZppError

GIB = 1 << 30
SHARED = (("0",), ("0",))


def test_who_shares_with_how_many() -> None:
    assert stages_on([("0",), ("1",), ("0",)]) == [2, 1, 2]
    assert stages_on([("0", "1"), ("1", "2")]) == [2, 2]
    assert stages_on([(), ()]) == [1, 1]


def test_a_gpu_of_its_own_is_vllms_to_use() -> None:
    assert share_words([("0",), ("1",)], [GIB, GIB], {}, ()) == [(), ()]


def test_each_gets_arguments_for_its_part_and_its_cache() -> None:
    first, second = share_words(SHARED, [4 * GIB, 5 * GIB], {"0": 80 * GIB}, ())
    assert first == (UTILIZATION, "0.46", KV_BYTES, str(int(80 * GIB * 0.46) - 4 * GIB - ROOM_BYTES))
    assert int(first[3]) - int(second[3]) == GIB


def test_only_those_that_share_get_arguments_and_the_smallest_gpu_counts() -> None:
    groups = [("0", "1"), ("1", "2"), ("3",)]
    words = share_words(groups, [GIB] * 3, {"0": 80 * GIB, "1": 24 * GIB, "2": 80 * GIB}, ())
    assert words[0] == words[1]
    assert int(words[0][3]) < 24 * GIB
    assert words[2] == ()


@pytest.mark.parametrize(
    ("given_words", "added"),
    [
        ((UTILIZATION, "0.3"), (KV_BYTES, str(int(40 * GIB * 0.3) - GIB - ROOM_BYTES))),
        (("--gpu_memory_utilization=0.3",), (KV_BYTES, str(int(40 * GIB * 0.3) - GIB - ROOM_BYTES))),
        ((KV_BYTES, "9"), (UTILIZATION, "0.46")),
        ((KV_BYTES, "9", UTILIZATION, "0.5"), ()),
    ],
)
def test_the_users_own_value_is_kept(given_words: tuple[str, ...], added: tuple[str, ...]) -> None:
    assert share_words(SHARED, [GIB, GIB], {"0": 40 * GIB}, given_words) == [added, added]


@pytest.mark.parametrize(
    ("weights", "totals", "given_words", "code", "said"),
    [
        (GIB, {"0": 40 * GIB}, (UTILIZATION, "0.9"), ExitCode.USAGE, "2 stages share GPU 0, and --gpu-memory-u"),
        (GIB, {"0": 40 * GIB}, (UTILIZATION, "all"), ExitCode.INVALID, "all: not a number"),
        (GIB, {}, (), ExitCode.USAGE, "2 stages share GPU 0, and the size of its memory is not known"),
        (17 * GIB, {"0": 40 * GIB}, (), ExitCode.FAILURE, r"each may take 18\.4 GiB, and stage 0 needs 17\.0 GiB"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    weights: int, totals: dict[str, int], given_words: tuple[str, ...], code: ExitCode, said: str
) -> None:
    with pytest.raises(ZppError, match=said) as fault:
        share_words(SHARED, [weights, GIB], totals, given_words)
    assert fault.value.exit_code is code
    assert fault.value.hint or code is ExitCode.INVALID


def test_the_hint_names_a_part_that_is_taken() -> None:
    three = (("0",),) * 3
    with pytest.raises(ZppError) as fault:
        share_words(three, [GIB] * 3, {"0": 80 * GIB}, (UTILIZATION, "0.5"))
    assert fault.value.hint == "Give at most 0.33, or leave it out."
    share_words(three, [GIB] * 3, {"0": 80 * GIB}, (UTILIZATION, "0.33"))


@given(st.integers(2, 8), st.lists(st.integers(0, 20 * GIB), min_size=8, max_size=8), st.integers(GIB, 200 * GIB))
def test_all_that_share_fit_together(count: int, weights: list[int], total: int) -> None:
    try:
        words = share_words([("0",)] * count, weights[:count], {"0": total}, ())
    except ZppError:
        assert max(weights[:count]) + ROOM_BYTES >= total * 0.91 / count - total * 0.001
        return
    taken = sum(int(own[3]) + size + ROOM_BYTES for own, size in zip(words, weights[:count], strict=True))
    assert taken <= total
    assert sum(float(own[1]) for own in words) <= 1
