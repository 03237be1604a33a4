# SPDX-License-Identifier: Apache-2.0
"""A plan is made from headers, is read back from its file unchanged, and every reason why it cannot work is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from checkpoints import llama, write_checkpoint, written_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zpptool.config.plan import PipelinePlan, load_plan_file, make_plan, plan_faults
from zpptool.config.resolve import spec_of_plan
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ZppError
from zpptool.wire.compression.adaptive import WireCodec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, 6)


def planned(model: Path, **changes: object) -> PipelinePlan:
    return make_plan(model, **{"num_stages": 3, "base_port": 15550, "api_port": 8000, **changes})


def test_a_plan_can_work_and_is_read_back_unchanged(model: Path, tmp_path: Path) -> None:
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
def test_every_plan_can_work(model: Path, num_stages: int, base_port: int, alone: bool) -> None:
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


def test_every_fault_of_a_changed_plan_is_found(model: Path) -> None:
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


def test_the_plan_gives_the_wire_codec_and_nothing_else_of_how_a_stage_runs(model: Path) -> None:
    runtime = RuntimeOptions(device="cpu", step_timeout_s=7.0, wire_codec=WireCodec.ZSTD)
    spec = spec_of_plan(planned(model, wire_codec=WireCodec.AUTO), 1, None, runtime)
    assert spec.runtime == RuntimeOptions(device="cpu", step_timeout_s=7.0, wire_codec=WireCodec.AUTO)
