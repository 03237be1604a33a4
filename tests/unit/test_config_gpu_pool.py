# SPDX-License-Identifier: Apache-2.0
"""Which GPUs there are for stages, and who gets which: on lists of names, for no test machine has a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.gpu_pool import (
    BY_BUS,
    CUDA,
    HIP,
    ORDER,
    XPU,
    GpuPool,
    hand_out,
    parse_gpu_ids,
    visible_gpus,
)
from zpptool.errors import ExitCode, ZppError

UUIDS = "GPU-8932f937-d72c,GPU-46e90a2b-11aa"
MIG = "MIG-41b36db5-67fe,MIG-0d3b5e1c-aa10"


def pool(*ids: str, named: bool = False) -> GpuPool:
    return GpuPool(ids, (CUDA,), named=named)


@pytest.mark.parametrize(
    ("env", "ids", "variables"),
    [
        ({}, ("0", "1"), (CUDA,)),
        ({CUDA: "3,1"}, ("3", "1"), (CUDA,)),
        ({CUDA: UUIDS}, tuple(UUIDS.split(",")), (CUDA,)),
        ({CUDA: MIG}, tuple(MIG.split(",")), (CUDA,)),
        ({CUDA: " 2 , 3 "}, ("2", "3"), (CUDA,)),
        ({CUDA: "2,-1,3"}, ("2",), (CUDA,)),
        ({CUDA: ""}, (), (CUDA,)),
        ({CUDA: "NoDevFiles"}, (), (CUDA,)),
        ({HIP: "1,2"}, ("1", "2"), (HIP,)),
        ({CUDA: "1,2", HIP: "1,2"}, ("1", "2"), (CUDA, HIP)),
        ({XPU: "0.0,0.1"}, ("0.0", "0.1"), (XPU,)),
        ({CUDA: "", XPU: "1"}, ("1",), (XPU,)),
    ],
)
def test_the_users_variable_is_the_pool_and_else_what_is_found(
    env: dict[str, str], ids: tuple[str, ...], variables: tuple[str, ...]
) -> None:
    seen = visible_gpus(env, ["0", "1"])
    assert (seen.ids, seen.variables, seen.named) == (ids, variables, bool(env))


def test_what_is_found_is_numbered_by_bus_as_nvidia_smi_does() -> None:
    assert visible_gpus({}, ["0", "1"]).environment(("1",)) == {CUDA: "1", ORDER: BY_BUS}
    assert visible_gpus({ORDER: "FASTEST_FIRST"}, ["0"]).environment(("0",)) == {CUDA: "0"}
    assert visible_gpus({CUDA: "4,5"}, []).environment(("4", "5")) == {CUDA: "4,5"}
    assert visible_gpus({CUDA: "4", HIP: "4"}, []).environment(("4",)) == {CUDA: "4", HIP: "4"}
    assert visible_gpus({}, ["0"]).environment(()) == {}


@pytest.mark.parametrize(
    ("env", "said"),
    [({CUDA: "0,1,0"}, "names GPU 0 twice"), ({CUDA: "0", HIP: "1"}, "name different GPUs")],
)
def test_a_pool_that_cannot_be_is_refused(env: dict[str, str], said: str) -> None:
    with pytest.raises(ZppError, match=said) as fault:
        visible_gpus(env, [])
    assert fault.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        (None, ()), ("", ()), ("0", (("0",),)), ("0,1", (("0", "1"),)),
        ("0,1;2,3", (("0", "1"), ("2", "3"))), (" 0 ; GPU-aa ", (("0",), ("GPU-aa",))),
    ],
)  # fmt: skip
def test_a_list_or_groups_are_read(text: str | None, groups: tuple[tuple[str, ...], ...]) -> None:
    assert parse_gpu_ids(text) == groups


@pytest.mark.parametrize("text", ["0,", ";", "0,1;", ","])
def test_a_missing_name_is_refused(text: str) -> None:
    with pytest.raises(ZppError, match="name is missing"):
        parse_gpu_ids(text)


@pytest.mark.parametrize(
    ("ids", "sizes", "groups"),
    [
        ((), (1, 1), ((), ())),
        (("0", "1"), (1, 1), (("0",), ("1",))),
        (("0", "1", "2", "3"), (2, 2), (("0", "1"), ("2", "3"))),
        (("0", "1", "2", "3"), (1, 2), (("0",), ("1", "2"))),
        (("5", "7"), (1,), (("5",),)),
        (("0",), (1, 1, 1), (("0",), ("0",), ("0",))),
        (("0", "1"), (1, 1, 1, 1), (("0",), ("1",), ("0",), ("1",))),
        (("0", "1"), (2, 2), (("0", "1"), ("0", "1"))),
        (("0", "1", "2"), (2, 2), (("0", "1"), ("2", "0"))),
        (tuple(MIG.split(",")), (1, 1), tuple((name,) for name in MIG.split(","))),
    ],
)  # fmt: skip
def test_each_stage_takes_the_next(ids: tuple[str, ...], sizes: tuple[int, ...], groups: object) -> None:
    assert hand_out(pool(*ids), sizes, ()) == groups


@given(st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_no_gpu_is_shared_while_another_is_free(count: int, sizes: list[int]) -> None:
    ids = [str(number) for number in range(count)]
    if max(sizes) > count:
        with pytest.raises(ZppError, match=f"takes {max(sizes)} GPUs"):
            hand_out(pool(*ids), sizes, ())
        return
    groups = hand_out(pool(*ids), sizes, ())
    assert [len(set(group)) for group in groups] == sizes
    uses = [sum(name in group for group in groups) for name in ids]
    assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(
    ("chosen", "sizes", "groups"),
    [
        ("0,1;2,3", (2, 2), (("0", "1"), ("2", "3"))),
        ("0,1,2,3", (2, 2), (("0", "1"), ("2", "3"))),
        ("3,1,2", (1, 2), (("3",), ("1", "2"))),
        ("3;1,2", (1, 2), (("3",), ("1", "2"))),
        ("0,0", (1, 1), (("0",), ("0",))),
        ("0,1", (2,), (("0", "1"),)),
    ],
)
def test_a_choice_is_taken(chosen: str, sizes: tuple[int, ...], groups: object) -> None:
    assert hand_out(pool(), sizes, parse_gpu_ids(chosen)) == groups


@pytest.mark.parametrize(
    ("chosen", "sizes", "said"),
    [
        ("0", (1, 1), "1 GPUs are given for 2 stages, which take 2"),
        ("0,1", (2, 1), "2 GPUs are given for 2 stages, which take 3"),
        ("0;1;2", (1, 1), "3 groups of GPUs are given for 2 stages"),
        ("0;1", (2, 1), "a stage of --tensor-parallel-size 2 is given 0$"),
        ("0,0;1", (2, 1), "a stage of --tensor-parallel-size 2 is given 0,0"),
        ("MIG-a,MIG-b", (2,), "a process sees one MIG device only"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(chosen: str, sizes: tuple[int, ...], said: str) -> None:
    with pytest.raises(ZppError, match=said) as fault:
        hand_out(pool(), sizes, parse_gpu_ids(chosen))
    assert fault.value.exit_code is ExitCode.USAGE


def test_a_choice_keeps_to_what_the_user_shows() -> None:
    assert hand_out(pool("4", "5", named=True), (1,), (("5",),)) == (("5",),)
    with pytest.raises(ZppError, match=f"GPU 0 is not among {CUDA}=4,5"):
        hand_out(pool("4", "5", named=True), (1,), (("0",),))
    with pytest.raises(ZppError, match=f"GPU 0 is not among {CUDA}=$"):
        hand_out(visible_gpus({CUDA: ""}, ["0"]), (1,), (("0",),))
