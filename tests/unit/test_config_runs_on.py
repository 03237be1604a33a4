# SPDX-License-Identifier: Apache-2.0
"""Tensor-parallel sizes, devices and resources of a plan's stages: what is held, what follows, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import nvidiasmi
import pytest
import yaml
from checkpoints import llama, llama_config, write_checkpoint
from nvidiasmi import TWO

from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_faults import gpu_faults
from zpptool.config.gpu_plan import place_on_gpus
from zpptool.config.plan import PipelinePlan, load_plan_file, make_plan, plan_faults
from zpptool.config.plan_gpus import gpus_on_host
from zpptool.config.resolve import spec_of_plan
from zpptool.config.runs_on import RunsOn, StageWishes, whole_numbers
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.tensor_parallel import head_faults
from zpptool.deploy.compose import COMPOSE_FILE, compose_files
from zpptool.deploy.deployment import Deployment, Device, check_deployment
from zpptool.deploy.kubernetes.manifests import kubernetes_files
from zpptool.deploy.shell_commands import host_commands
from zpptool.deploy.stageunit import GIB, stage_units
from zpptool.deploy.systemd import systemd_files
from zpptool.doctor.check_engine import device_findings
from zpptool.doctor.finding import Level
from zpptool.errors import ExitCode, ZppError

MIXED = StageWishes(
    tensor_parallel_sizes=(2, 1, 2),
    devices=("cuda", "cpu", "cuda"),
    images=("a:1", "", "b:2"),
    memory_gib=(0, 64, 0),
    cpus=(0, 0, 12),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs_on") / "model"
    return write_checkpoint(directory, llama(layers=6), llama_config(layers=6, num_attention_heads=4))


def planned(model: Path, wishes: StageWishes = MIXED, **changes: Any) -> PipelinePlan:
    return make_plan(model, **{"num_stages": 3, "base_port": 15550, "api_port": 8000, "wishes": wishes, **changes})


def test_a_plan_with_sizes_and_devices_is_read_back_unchanged(model: Path, tmp_path: Path) -> None:
    made = planned(model)
    file = tmp_path / "zpp.yaml"
    file.write_text(made.to_yaml())
    assert load_plan_file(file) == made
    assert plan_faults(made, model) == []
    stages = yaml.safe_load(file.read_text())["stages"]
    assert [stage.get("tensor_parallel_size") for stage in stages] == [2, None, 2]  # 1 is the default
    assert stages[1]["runs_on"] == {"device": "cpu", "memory_gib": 64}


def test_the_digest_covers_sizes_and_not_what_a_stage_runs_on(model: Path) -> None:
    made, alike = planned(model), planned(model, StageWishes(tensor_parallel_sizes=(2, 1, 2)))
    assert made.stages != alike.stages
    assert made.digest == alike.digest
    assert made.digest != planned(model, StageWishes()).digest
    assert made.besides != planned(model, StageWishes()).besides
    plain = planned(model, StageWishes()).to_yaml()  # without these keys its digest is what earlier releases compute
    assert "tensor_parallel_size:" not in plain
    assert "runs_on:" not in plain


def test_a_stage_takes_size_and_device_from_the_plan(model: Path) -> None:
    made = planned(model)
    specs = [spec_of_plan(made, stage, model) for stage in range(3)]
    assert [(spec.tensor_parallel_size, spec.device) for spec in specs] == [(2, "cuda"), (1, "cpu"), (2, "cuda")]
    free = planned(model, StageWishes())
    assert spec_of_plan(free, 1, model, RuntimeOptions(device="cpu")).device == "cpu"
    with pytest.raises(ZppError, match="device cpu for stage 1, and cuda is given") as fault:
        spec_of_plan(made, 1, model, RuntimeOptions(device="cuda"))
    assert fault.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("wishes", "changes", "message"),
    [
        (StageWishes(tensor_parallel_sizes=(3,)), {}, "stage 0 has tensor_parallel_size 3, which does not divide"),
        (StageWishes(tensor_parallel_sizes=(2,)), {"engine": Engine.TRANSFORMERS}, "runs on one device"),
        (StageWishes(tensor_parallel_sizes=(2, 1)), {}, "2 tensor-parallel sizes are given for 3 stages"),
        (StageWishes(devices=("cpu", "cuda")), {}, "2 values of --device are given for 3 stages"),
        (StageWishes(devices=("cpus",)), {}, "the device 'cpus'"),
    ],
)
def test_what_stages_cannot_be_is_not_planned(
    model: Path, wishes: StageWishes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ZppError, match=message):
        planned(model, wishes, **changes)


def test_an_edited_plan_is_refused_by_name(model: Path) -> None:
    made = planned(model)

    def edited(**changes: Any) -> PipelinePlan:
        places = [made.stages[0], msgspec.structs.replace(made.stages[1], **changes), made.stages[2]]
        return msgspec.structs.replace(made, stages=tuple(places))

    assert "does not divide" in plan_faults(edited(tensor_parallel_size=3), model)[0]
    assert "the device 'tpu'" in plan_faults(edited(runs_on=RunsOn(device="tpu")))[0]
    assert "not the name" in plan_faults(edited(runs_on=RunsOn(image="a\nb")))[0]
    embedded = msgspec.structs.replace(made, engine=Engine.TRANSFORMERS)
    assert [fault[:7] for fault in plan_faults(embedded)] == ["stage 0", "stage 2"]


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, 2, "does not divide 9 attention heads"),
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, 3, None),
        ({"num_attention_heads": 12, "num_key_value_heads": 4}, 6, "neither divides 4 key-value heads nor is"),
        ({"num_attention_heads": 32, "num_key_value_heads": 8}, 16, None),
        ({"n_head": 12}, 5, "does not divide 12"),
        ({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 9}}, 2, "does not divide 9"),
        ({}, 7, None),
    ],
)
def test_heads_are_divided_evenly(config: dict[str, Any], size: int, message: str | None) -> None:
    faults = head_faults(config, {4: size})
    assert len(faults) == (message is not None)
    assert message is None or message in faults[0]


def test_stages_of_a_host_take_its_gpus_in_order(model: Path) -> None:
    made = planned(model)
    assert gpus_on_host(made.stages, "cuda") == {0: (0, 1), 1: (), 2: (2, 3)}
    assert gpus_on_host(made.stages[1:], "cuda") == {1: (), 2: (0, 1)}
    commands = host_commands(planned(model, hosts=["a"]), Path("zpp.yaml"))[0].commands
    assert ["--gpu-ids 0,1" in commands[0], "--gpu-ids" in commands[1], "--gpu-ids 2,3" in commands[2]] == [1, 0, 1]
    alone = host_commands(planned(model, hosts=["a", "b", "c"]), Path("zpp.yaml"))
    assert not any("--gpu-ids" in host.commands[0] for host in alone)


def test_too_few_gpus_on_this_machine_are_a_fault(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial(nvidiasmi.install, monkeypatch, tmp_path)(TWO)
    made = planned(model, StageWishes(tensor_parallel_sizes=(2, 1, 4), devices=("cuda",)))
    assert gpu_faults(made, [0, 1]) == []
    assert "stage 2 takes 4 GPUs" in gpu_faults(made, [0, 1, 2])[0]
    cpu = planned(model, StageWishes(tensor_parallel_sizes=(4,), devices=("cpu",)))
    assert gpu_faults(cpu, [0, 1, 2]) == []


def test_only_stages_that_do_not_compute_on_the_cpu_are_handed_gpus(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, TWO)
    made = planned(model, StageWishes(devices=("cuda", "cpu", "cuda")))
    specs = [spec_of_plan(made, stage, model) for stage in range(3)]
    placed = place_on_gpus(specs, ())
    assert placed.groups == (("0",), (), ("1",))
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in placed.env] == ["0", None, "1"]
    assert place_on_gpus(specs, [("1", "0")]).groups == (("1",), (), ("0",))


def test_the_doctor_counts_a_gpu_for_each_rank() -> None:
    gpus = [("H", 80 * GIB, 80 * GIB)] * 2
    assert [item.level for item in device_findings(gpus, [GIB], [2])] == [Level.OK, Level.OK]
    assert [item.level for item in device_findings(gpus, [GIB], [4])][-1] is Level.BLOCKER
    assert [item.level for item in device_findings(gpus, [GIB, GIB], [2, 1])][-1] is Level.WARNING
    full = list(device_findings(gpus, [GIB, 90 * GIB], [1, 1]))
    assert [item.level for item in full] == [Level.OK, Level.BLOCKER]


def test_a_deployment_takes_ranks_devices_images_and_resources_from_the_plan(model: Path) -> None:
    plan = planned(model, hosts=["a", "a", "b"])
    deployment = check_deployment(Deployment(plan=plan, name="zpp", image="c:3", source="hf://org/name@0123abcd"))
    units = stage_units(deployment, deployment.source)
    assert [unit.gpus for unit in units] == [(0, 1), (), (2, 3)]
    assert units[1].memory_bytes == 64 * GIB
    assert (
        units[0].memory_bytes
        > stage_units(replace(deployment, plan=planned(model, StageWishes())), "x")[0].memory_bytes
    )
    pods = [
        item["spec"]["template"]["spec"]["containers"][0]
        for text in kubernetes_files(deployment).values()
        for item in yaml.safe_load_all(text)
        if item["kind"] == "StatefulSet"
    ]
    assert [pod["image"] for pod in pods] == ["a:1", "c:3", "b:2"]
    assert [pod["resources"]["limits"].get("nvidia.com/gpu") for pod in pods] == [2, None, 2]
    assert pods[1]["resources"]["limits"]["memory"] == "64Gi"
    assert pods[2]["resources"]["requests"]["cpu"] == "12"
    commands = [pod["command"] for pod in pods]
    assert [command[command.index("--device") + 1] for command in commands] == ["cuda", "cpu", "cuda"]
    assert ["--tensor-parallel-size" in command for command in commands] == [True, False, True]
    services = yaml.safe_load(compose_files(deployment)[COMPOSE_FILE])["services"]
    resources = [services[f"zpp-stage-{stage}"]["deploy"]["resources"] for stage in range(3)]
    assert resources[2]["reservations"]["devices"][0]["device_ids"] == ["2", "3"]
    assert "reservations" not in resources[1]
    assert resources[2]["limits"]["cpus"] == "12"
    assert services["zpp-stage-2"]["image"] == "b:2"
    units_of = systemd_files(deployment)
    assert "--device cuda" in units_of["a/zpp-stage-0.service"]
    assert "--gpu-ids 0,1" in units_of["a/zpp-stage-0.service"]
    assert "--gpu-ids 0,1" in units_of["b/zpp-stage-2.service"]
    assert "--gpu-ids" not in units_of["a/zpp-stage-1.service"]


def test_devices_and_images_that_cannot_be_deployed_are_refused(model: Path) -> None:
    plan = planned(model, StageWishes(devices=("cuda:1",)))
    with pytest.raises(ZppError, match="deployed on cpu or cuda"):
        check_deployment(Deployment(plan=plan, name="zpp", image="c:3", source="hf://org/name"))
    bad = planned(model, StageWishes(images=("NOT AN IMAGE",)))
    with pytest.raises(ZppError, match="not a valid name of a container image"):
        check_deployment(Deployment(plan=bad, name="zpp", image="c:3", source="hf://org/name", device=Device.CPU))


def test_numbers_of_resources() -> None:
    assert whole_numbers("--cpus", None) == (0,)
    assert whole_numbers("--cpus", "4, 8") == (4, 8)
    for text in ("0", "", "4,", "-1", "x", "9" * 30):
        with pytest.raises(ZppError, match="not numbers from 1 up"):
            whole_numbers("--cpus", text)
