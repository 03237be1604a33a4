# SPDX-License-Identifier: Apache-2.0
"""A plan is made from headers, survives its file, and says every reason why it cannot work."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from checkpoints import llama, llama_config, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zpptool.config.plan import (
    PipelinePlan,
    host_and_port,
    kv_bytes_per_token,
    load_plan_file,
    make_plan,
    moved_plan,
    plan_faults,
    repartitioned_plan,
    rewrite_plan,
)
from zpptool.config.resolve import spec_of_plan
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan") / "model"
    write_checkpoint(directory, llama(layers=6), llama_config(layers=6))
    return directory


def planned(model: Path, **changes: object) -> PipelinePlan:
    return make_plan(model, **{"num_stages": 3, "base_port": 15550, "api_port": 8000, **changes})


def test_a_plan_can_work_and_survives_its_file(model: Path, tmp_path: Path) -> None:
    made = planned(model, hosts=["a", "b", "c"], engine_args=("--max-model-len", "512"))
    assert plan_faults(made, model) == []
    file = tmp_path / "zpp.yaml"
    file.write_text(made.to_yaml())
    assert load_plan_file(file) == made
    assert load_plan_file(file).digest == made.digest


def test_every_byte_of_the_weights_is_planned_for_once_but_a_tied_embedding(model: Path) -> None:
    whole = planned(model, num_stages=1).stages[0].weight_bytes
    assert sum(place.weight_bytes for place in planned(model).stages) >= whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(num_stages=st.integers(1, 6), base_port=st.integers(1024, 60000), alone=st.booleans())
def test_whatever_is_planned_can_work(model: Path, num_stages: int, base_port: int, alone: bool) -> None:
    hosts = [f"host-{stage}" for stage in range(num_stages)] if alone else None
    made = planned(model, num_stages=num_stages, base_port=base_port, hosts=hosts, api_port=1023)
    assert plan_faults(made) == []
    for stage in range(num_stages):
        spec = spec_of_plan(made, stage, model)
        assert (spec.bind, spec.layers) == (made.stages[stage].bind, made.partition[stage])
        assert spec.connect == made.stages[stage - 1].bind


def replace_stage(made: PipelinePlan, stage: int, **changes: object) -> PipelinePlan:
    places = list(made.stages)
    places[stage] = msgspec.structs.replace(places[stage], **changes)
    return msgspec.structs.replace(made, stages=tuple(places))


def test_every_fault_of_a_changed_plan_is_said(model: Path) -> None:
    made = planned(model)
    assert plan_faults(replace_stage(made, 1, layers="2-5"))[0].startswith("stage 2")
    broken = replace_stage(made, 1, layers="3-4", connect="tcp://127.0.0.1:1", bind=made.stages[0].bind)
    faults = " / ".join(plan_faults(broken))
    assert "layer 2" in faults
    assert "stage 1 connects to tcp://127.0.0.1:1, but stage 0 binds" in faults
    assert "stages 0 and 1 both bind" in faults
    assert plan_faults(msgspec.structs.replace(made, stages=made.stages[1:])) == [
        "the stages are numbered [1, 2], not 0 to 1 in order"
    ]
    assert "API port" in plan_faults(msgspec.structs.replace(made, api_port=15550))[0]


def test_another_model_than_the_planned_one_is_a_fault(model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", llama(layers=4))
    faults = plan_faults(planned(model), tmp_path / "other")
    assert "the plan is for 6 layers" in faults[0]
    assert "not the model that was planned for" in faults[1]
    with pytest.raises(ZppError, match="not the model that was planned for"):
        spec_of_plan(planned(model), 0, tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan"),
        ("stages: [", "not YAML"),
        ("- 2024-99-99", "not YAML"),
        ("[" * 20000, "not YAML"),
        ("a: &a [1]\nb: *a", "not YAML"),
        ("surprise: 1", "not a plan"),
        ("- 1", "not a plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "zpp.yaml"
    file.write_text(text)
    with pytest.raises(ZppError, match=message):
        load_plan_file(file)
    with pytest.raises(ZppError, match="cannot be read"):
        load_plan_file(tmp_path / "nothing.yaml")


def test_an_unknown_key_is_named(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "zpp.yaml"
    file.write_text(planned(model).to_yaml() + "surprise: 1\n")
    with pytest.raises(ZppError, match="surprise"):
        load_plan_file(file)


def test_the_kv_cache_is_counted_from_the_config() -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
    assert kv_bytes_per_token(config, LayerRange(1, 3)) == 2 * 2 * 2 * 8 * 2
    assert kv_bytes_per_token({"num_hidden_layers": 4}, LayerRange(0, 4)) is None
    assert kv_bytes_per_token({**config, "kv_lora_rank": 16}, LayerRange(0, 4)) is None


@pytest.mark.parametrize(("stage", "receiver"), [(1, 2), (2, 0)])
def test_a_plan_of_which_a_stage_has_moved_is_the_same_plan(
    model: Path, tmp_path: Path, stage: int, receiver: int
) -> None:
    """Running stages have the digest of the one before, and what receives from the stage finds it."""
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


@pytest.mark.parametrize(
    ("stage", "host", "port", "code", "told"),
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
    model: Path, stage: int, host: str, port: int | None, code: ExitCode, told: str
) -> None:
    with pytest.raises(ZppError) as refused:
        moved_plan(planned(model, hosts=["a", "b", "c"]), stage, host, port)
    assert refused.value.exit_code is code
    assert told in refused.value.message


def test_stages_that_meet_over_files_cannot_be_moved(model: Path) -> None:
    made = replace_stage(planned(model), 1, bind="ipc:///run/x")
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
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ZppError, match="HOST or HOST:PORT"):
        host_and_port(text)
