# SPDX-License-Identifier: Apache-2.0
"""From what a user says about one stage to its place: looked up where it is written, refused where it is said twice."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from zpptool.checkpoint.split import split_checkpoint
from zpptool.config.resolve import (
    StagePlace,
    host_port,
    partition_around,
    refuse_api_port,
    resolve_links,
    resolve_place,
)
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange, check_ranges

LAYERS = 6
SPLIT = ("0-1", "1-4", "4-6")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("full") / "model", llama(LAYERS), llama_config(LAYERS))


@pytest.fixture(scope="module")
def split(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("split") / "stages"
    split_checkpoint(full, out, ranges=SPLIT)
    return out


def refusal(code: ExitCode, *args: Any, of: Any = resolve_place, **options: Any) -> ZppError:
    with pytest.raises(ZppError) as refused:
        of(*args, **options)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value


def words(place: StagePlace) -> tuple[str, int, str]:
    return place.directory.name, place.stage, " ".join(map(str, place.partition))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"stage": 1},
        {"num_stages": 3},
        {"layer_range": "[1:4]"},
        {"ranges": SPLIT},
        {"stage": 1, "num_stages": 3, "layer_range": "1-4", "ranges": SPLIT},
    ],
)
def test_a_stage_directory_knows_its_place(split: Path, said: dict[str, Any]) -> None:
    assert words(resolve_place(split / "stage_1", **said)) == ("stage_1", 1, "0-1 1-4 4-6")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"stage": 0}, "the stage is said to be 0, but"),
        ({"num_stages": 4}, "the number of stages is said to be 4, but"),
        ({"layer_range": "1-3"}, "the layer range is said to be 1-3, but"),
        ({"layer_range": ""}, "'' is not a layer range"),
        ({"ranges": ("0-2", "2-4", "4-6")}, "the partition is said to be 0-2 2-4 4-6, but"),
        ({"ranges": ("0-1", "1-4")}, "the partition is said to be 0-1 1-4, but"),
        ({"ranges": ("0-1", "x")}, "'x' is not a layer range"),
    ],
)
def test_a_stage_directory_is_not_talked_out_of_its_place(split: Path, said: dict[str, Any], told: str) -> None:
    fault = refusal(ExitCode.INVALID, split / "stage_1", **said)
    assert told in fault.message
    if "but" in told:
        assert str(split / "stage_1") in fault.message


def test_a_directory_of_stages_has_to_be_told_which_one(split: Path) -> None:
    assert words(resolve_place(split, stage=2)) == ("stage_2", 2, "0-1 1-4 4-6")
    assert "holds 3 stages: which one" in refusal(ExitCode.USAGE, split).message
    assert "no stage_3; it holds stage_0, stage_1, stage_2" in refusal(ExitCode.INVALID, split, stage=3).message
    assert "number of stages" in refusal(ExitCode.INVALID, split, stage=2, num_stages=2).message


@pytest.mark.parametrize(
    ("said", "stage", "partition"),
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
def test_a_full_checkpoint_is_cut_as_one_says(full: Path, said: dict[str, Any], stage: int, partition: str) -> None:
    assert words(resolve_place(full, **said)) == ("model", stage, partition)


@pytest.mark.parametrize(
    ("said", "code", "told"),
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
        ({"stage": 1, "ranges": SPLIT, "layer_range": "2-4"}, ExitCode.INVALID, "layer range is said to be 2-4"),
        ({"stage": 1, "num_stages": 3, "layer_range": "0-2"}, ExitCode.INVALID, "cannot own layers 0-2 of 6"),
        ({"stage": 1, "num_stages": 3, "layer_range": "two"}, ExitCode.INVALID, "'two' is not a layer range"),
        ({"stage": 1, "num_stages": 3, "layer_range": ""}, ExitCode.INVALID, "'' is not a layer range"),
    ],
)
def test_what_is_missing_or_cannot_be_is_said(full: Path, said: dict[str, Any], code: ExitCode, told: str) -> None:
    assert told in refusal(code, full, **said).message


def test_a_contradiction_between_flags_is_not_blamed_on_the_checkpoint(full: Path) -> None:
    fault = refusal(ExitCode.INVALID, full, stage=1, ranges=SPLIT, layer_range="2-4")
    assert str(full) not in fault.message


def test_no_model_at_all(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(ExitCode.INVALID, tmp_path / "none", stage=0, num_stages=1).message


def exists(own: LayerRange, stage: int, num_stages: int, num_layers: int) -> bool:
    """Whether any partition has that range at that place: by trying them all."""
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


def test_links_are_those_of_the_plan() -> None:
    assert resolve_links(0, 3) == ("tcp://127.0.0.1:15550", "tcp://127.0.0.1:15553")
    assert resolve_links(1, 3, base_port=9000) == ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9000")
    assert resolve_links(2, 3, hosts=["a", "b", "c"]) == ("tcp://c:15553", "tcp://b:15550")
    assert resolve_links(0, 1) == ("tcp://127.0.0.1:15551", "tcp://127.0.0.1:15551")


def test_what_is_said_wins_over_the_plan() -> None:
    said = resolve_links(1, 3, bind_port=7000, previous="10.0.0.1:7001")
    assert said == ("tcp://127.0.0.1:7000", "tcp://10.0.0.1:7001")
    assert resolve_links(1, 3, bind_host="0.0.0.0")[0] == "tcp://0.0.0.0:15551"
    assert resolve_links(1, 3, bind_host="::1")[0] == "tcp://[::1]:15551"
    assert resolve_links(1, 3, bind_host="[::1]")[0] == "tcp://[::1]:15551"
    whole = resolve_links(1, 3, bind="ipc:///run/a", connect="ipc:///run/b")
    assert whole == ("ipc:///run/a", "ipc:///run/b")


def test_the_prior_arts_addresses_make_one_ring() -> None:
    """Its example gives every stage but the last the same port on one host, which cannot be; on hosts of their own it
    can."""
    binds = [
        resolve_links(stage, 4, bind_port=15550 + 4 * (stage == 3), bind_host=f"10.0.0.{stage}")[0]
        for stage in range(4)
    ]
    stages_before = [f"10.0.0.{stage}:15550" for stage in range(3)]
    connects = [
        resolve_links(stage, 4, previous=before, bind_port=15550)[1]
        for stage, before in enumerate(["10.0.0.3:15554", *stages_before])
    ]
    assert connects == [binds[-1], *binds[:-1]]
    fault = refusal(ExitCode.ADDRESS, 1, 4, of=resolve_links, bind_port=15550, previous="127.0.0.1:15550")
    assert "stage 1 is to bind tcp://127.0.0.1:15550 and to connect to the same address" in fault.message
    assert "plan-ports" in (fault.hint or "")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"bind_port": 0}, ExitCode.ADDRESS),
        ({"bind_port": 65536}, ExitCode.ADDRESS),
        ({"bind_port": -1}, ExitCode.ADDRESS),
        ({"previous": "10.0.0.1"}, ExitCode.ADDRESS),
        ({"base_port": 65534}, ExitCode.ADDRESS),
        ({"hosts": ["a", "b"]}, ExitCode.USAGE),
        ({"bind": "tcp://127.0.0.1:1", "bind_port": 2}, ExitCode.USAGE),
        ({"bind": "tcp://127.0.0.1:1", "bind_host": "10.0.0.1"}, ExitCode.USAGE),
        ({"connect": "tcp://127.0.0.1:1", "previous": "127.0.0.1:2"}, ExitCode.USAGE),
    ],
)
def test_links_that_cannot_be_are_refused(said: dict[str, Any], code: ExitCode) -> None:
    refusal(code, 1, 3, of=resolve_links, **said)


PLANNED = ("tcp://127.0.0.1:6000", "tcp://127.0.0.1:6003")


@pytest.mark.parametrize(
    ("links", "port", "told"),
    [
        (PLANNED, 6000, "stage 0 binds"),
        (PLANNED, 6001, "stage 1 binds"),
        (PLANNED, 6003, "stage 2 binds"),
        (("tcp://0.0.0.0:7000", "tcp://127.0.0.1:7003"), 7003, "stage 2 binds"),
        (("tcp://10.0.0.1:7000", "tcp://10.0.0.1:7003"), 7003, "stage 2 binds"),
        (("ipc:///x/a", "ipc:///x/b"), 0, "API port 0"),
    ],
)
def test_an_api_port_at_which_a_link_of_its_machine_is_is_refused(links: tuple[str, str], port: int, told: str) -> None:
    with pytest.raises(ZppError, match=told) as refused:
        refuse_api_port(*links, 3, port, base_port=6000)
    assert refused.value.exit_code is ExitCode.ADDRESS


@pytest.mark.parametrize(
    ("links", "port"),
    [
        (PLANNED, 6002),
        (("tcp://10.0.0.1:7000", "tcp://10.0.0.2:7003"), 7003),
        (("tcp://127.0.0.1:7000", "tcp://10.0.0.2:7003"), 6001),
        (("ipc:///x/a", "ipc:///x/b"), 6000),
    ],
)
def test_any_other_api_port_is_taken(links: tuple[str, str], port: int) -> None:
    refuse_api_port(*links, 3, port, base_port=6000)


@pytest.mark.parametrize("text", ["10.0.0.2:15550", " tcp://10.0.0.2:15550 ", "tcp://10.0.0.2:15550"])
def test_an_address_may_name_its_transport(text: str) -> None:
    assert host_port(text) == "10.0.0.2:15550"


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert host_port("[fe80::1]:15550") == "[fe80::1]:15550"
    refusal(ExitCode.ADDRESS, "fe80::1:15550", of=host_port)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":15550", "host:0", "host:65536", "host:port", "a b:1", "udp://a:1", "a/b:1", "a:1/"]
)
def test_anything_else_is_no_address(text: str) -> None:
    assert repr(text) in refusal(ExitCode.ADDRESS, text, of=host_port).message
