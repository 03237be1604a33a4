# SPDX-License-Identifier: Apache-2.0
"""The plan of a running pipeline after a stage or layers have moved: the same plan to the stages that run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from checkpoints import written_llama

from zpptool.config.plan import PipelinePlan, load_plan_file, make_plan, plan_faults
from zpptool.config.plan_changes import host_and_port, moved_plan, repartitioned_plan, rewrite_plan
from zpptool.errors import ExitCode, ZppError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, 6)


def planned(model: Path, **changes: object) -> PipelinePlan:
    return make_plan(model, **{"num_stages": 3, "base_port": 15550, "api_port": 8000, **changes})


def replace_stage(made: PipelinePlan, stage: int, **changes: object) -> PipelinePlan:
    places = list(made.stages)
    places[stage] = msgspec.structs.replace(places[stage], **changes)
    return msgspec.structs.replace(made, stages=tuple(places))


@pytest.mark.parametrize(("stage", "receiver"), [(1, 2), (2, 0)])
def test_a_plan_of_which_a_stage_has_moved_is_the_same_plan(
    model: Path, tmp_path: Path, stage: int, receiver: int
) -> None:
    """Running stages have the digest of the plan before, and the receiver of the stage connects to its new address."""
    before = planned(model, hosts=["a", "b", "c"])
    after = moved_plan(before, stage, "d", None)
    port = before.stages[stage].bind.rpartition(":")[2]
    assert (after.stages[stage].host, after.stages[stage].bind) == ("d", f"tcp://d:{port}")
    assert after.stages[receiver].connect == f"tcp://d:{port}"
    assert after.stages[stage].connect == before.stages[stage].connect
    assert plan_faults(after, model) == []
    assert after != before
    assert after.digest == before.digest
    file = tmp_path / "zpp.yaml"
    rewrite_plan(file, after)
    assert load_plan_file(file) == after
    assert [path.name for path in tmp_path.iterdir()] == ["zpp.yaml"]
    again = moved_plan(load_plan_file(file), stage, "e", 17000)
    assert again.digest == before.digest
    assert again.stages[receiver].connect == "tcp://e:17000"


def test_a_moved_plan_in_which_anything_else_is_changed_is_another_plan(model: Path) -> None:
    before = planned(model, hosts=["a", "b", "c"])
    after = moved_plan(before, 1, "d", None)
    changes = [{"dtype": "float32"}, {"engine_args": ("--seed", "1")}, {"api_port": 9}, {"model": "other"}]
    others = [msgspec.structs.replace(after, **change) for change in changes]
    digests = {other.digest for other in others}
    assert before.digest not in digests
    assert len(digests) == len(others)


def test_a_plan_of_which_layers_have_moved_is_the_same_plan(model: Path) -> None:
    before = planned(model)
    after = repartitioned_plan(before, ["0-1", "1-5", "5-6"])
    assert [place.layers for place in after.stages] == ["0-1", "1-5", "5-6"]
    assert plan_faults(after, model) == []
    assert after.digest == before.digest
    assert after.stages[1].weight_bytes > before.stages[1].weight_bytes
    assert [place.endpoints for place in after.stages] == [place.endpoints for place in before.stages]
    with pytest.raises(ZppError, match="2 ranges are given for 3 stages"):
        repartitioned_plan(before, ["0-1", "1-6"])
    with pytest.raises(ZppError):
        repartitioned_plan(before, ["0-1", "1-5", "4-6"])


def test_layers_of_fetched_stages_are_not_moved(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HOME", "ZPP_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    fetched = msgspec.structs.replace(planned(model), model=f"hf://org/name@{'0123' * 10}")
    with pytest.raises(ZppError, match="fetched stages have their own tensors only") as refused:
        repartitioned_plan(fetched, ["0-1", "1-5", "5-6"])
    assert refused.value.exit_code is ExitCode.INVALID


@pytest.mark.parametrize(
    ("stage", "host", "port", "code", "message"),
    [
        (0, "d", None, ExitCode.USAGE, "stage 0 cannot be moved: the head runs beside it"),
        (3, "d", None, ExitCode.USAGE, "the plan has no stage 3"),
        (-1, "d", None, ExitCode.USAGE, "the plan has no stage -1"),
        (1, "b", None, ExitCode.USAGE, "is at tcp://b:15550 already"),
        (1, "a", None, ExitCode.INVALID, "both bind"),
        (1, "a", 8000, ExitCode.INVALID, "8000"),
    ],
)
def test_what_cannot_be_moved_is_refused(
    model: Path, stage: int, host: str, port: int | None, code: ExitCode, message: str
) -> None:
    with pytest.raises(ZppError) as refused:
        moved_plan(planned(model, hosts=["a", "b", "c"]), stage, host, port)
    assert refused.value.exit_code is code
    assert message in refused.value.message


def test_stages_linked_by_socket_files_cannot_be_moved(model: Path) -> None:
    for bind in ("ipc:///run/x", "tcp://a"):
        made = replace_stage(planned(model), 1, bind=bind)
        with pytest.raises(ZppError, match="which no other host reaches"):
            moved_plan(made, 1, "d", None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", None)), ("a.b-c:1", ("a.b-c", 1)), ("10.0.0.3", ("10.0.0.3", None)),
        ("10.0.0.3:65535", ("10.0.0.3", 65535)),
        ("fd00::3", ("fd00::3", None)), ("[fd00::3]", ("fd00::3", None)), ("[fd00::3]:7", ("fd00::3", 7)),
    ],
)  # fmt: skip
def test_a_host_and_its_port(text: str, parts: tuple[str, int | None]) -> None:
    assert host_and_port(text) == parts


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "a:0", "a:65536", "a:b", "a b", "tcp://a:1", "[fd00::3", "[fd00::3]:", "a/b"]
)
def test_text_that_is_not_a_host_is_refused(text: str) -> None:
    with pytest.raises(ZppError, match="HOST or HOST:PORT"):
        host_and_port(text)
