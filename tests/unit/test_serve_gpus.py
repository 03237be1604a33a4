# SPDX-License-Identifier: Apache-2.0
"""Launch plans of `serve` and `test-pipeline` on a machine with GPUs, whose nvidia-smi is a script; and the checks that
the GPUs exist and hold the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nvidiasmi
import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_discovery import Card
from zpptool.config.gpu_pool import CUDA, Group
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.trial_plan import TrialOptions, plan_trial
from zpptool.serve.gpus import refuse_full, refuse_unseen
from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))


def serving(model: Path, **changes: Any) -> tuple[PipelineLaunchPlan, ...]:
    options = {
        "model": model, "pipeline_dir": None, "plan_file": None, "num_stages": 2, "ranges": (), "engine": Engine.VLLM,
        "dtype": "auto", "gpu_ids": (), "port": 0, "base_port": None, "api_port": None, "replicas": 1,
        "served_name": "", "engine_args": (), "runtime": RuntimeOptions(recovery_deadline_s=120.0),
    }  # fmt: skip
    return plan_serving(ServeOptions(**{**options, **changes}))


def visible_gpus(plans: tuple[PipelineLaunchPlan, ...]) -> list[list[str]]:
    return [[env[CUDA] for env in plan.env] for plan in plans]


def flags(plan: PipelineLaunchPlan) -> list[list[str]]:
    return [[argument for argument in spec.engine_args if argument.startswith("--")] for spec in plan.specs]


def test_each_stage_gets_a_gpu(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    plans = serving(model)
    assert visible_gpus(plans) == [["0", "1"]]
    assert flags(plans[0]) == [[], []]
    assert visible_gpus(serving(model, gpu_ids=(("1", "0"),))) == [["1", "0"]]


def test_replicas_share_gpus_where_there_are_too_few(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    plans = serving(model, replicas=2)
    assert visible_gpus(plans) == [["0", "1"], ["0", "1"]]
    for plan in plans:
        assert flags(plan) == [["--gpu-memory-utilization", "--kv-cache-memory-bytes"]] * 2
    uneven = serving(model, num_stages=3)
    assert visible_gpus(uneven) == [["0", "1", "0"]]
    assert [len(names) for names in flags(uneven[0])] == [2, 0, 2]


@pytest.mark.parametrize(
    ("gpu_ids", "message"),
    [
        ((("0", "7"),), "there is no GPU 7 on this machine"),
        ((("0", "1", "1"),), "3 GPUs are given for 2 stages"),
        ((("0",), ("1",), ("1",)), "3 groups of GPUs are given for 2 stages"),
    ],
)
def test_a_wrong_choice_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_ids: tuple[Group, ...], message: str
) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    with pytest.raises(ZppError, match=message) as fault:
        serving(model, gpu_ids=gpu_ids)
    assert fault.value.exit_code is ExitCode.USAGE


def test_weights_that_a_gpu_cannot_hold_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, "0, GPU-5a2b, 40960, 40100\n1, GPU-6c3d, 40960, 0\n")
    with pytest.raises(ZppError, match="GPU 1 has 0 B free"):
        serving(model)


def test_a_choice_without_any_gpu_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, "", code=9)
    with pytest.raises(ZppError, match="--gpu-ids 0,1: nvidia-smi finds no GPU"):
        serving(model, gpu_ids=(("0", "1"),))
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0,1")
    (plan,) = serving(model, gpu_ids=(("1", "0"),))
    assert [env["HIP_VISIBLE_DEVICES"] for env in plan.env] == ["1", "0"]


def test_a_trial_gives_a_stage_all_its_gpus(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO + "2, GPU-7e, 40960, 40100\n")
    plan = plan_trial(
        TrialOptions(
            engine=Engine.VLLM, model=model, pipeline_dir=None, num_stages=2, ranges=(), prompts=("hello",),
            as_chat=False, with_long_prompts=False, batched=False, max_new_tokens=8, dtype="auto",
            gpu_ids=(), base_port=None, api_port=None, engine_args=(),
            tensor_parallel_sizes=(2, 1),
        ),
        tmp_path,
        tmp_path,
    )  # fmt: skip
    assert [env[CUDA] for env in plan.env] == ["0,1", "2"]
    assert "--gpu-memory-utilization" not in plan.stages[0].engine_args


def test_weights_are_summed_for_each_gpu() -> None:
    found = [Card("0", "GPU-aa", 80000 << 20, 40100 << 20), Card("1", "GPU-bb", 200 << 20, 100 << 20)]
    refuse_full([("0",), ("GPU-aa",), ("MIG-1",)], [1 << 30, 1 << 30, 1 << 40], found)
    refuse_full([("1",)], [1 << 40], [Card("1", "GPU-bb", None, None)])
    for shared in ([("1",), ("1",)], [("1",), ("GPU-bb",)], [("0", "1"), ("1", "0")]):
        with pytest.raises(ZppError, match=r"GPU 1 has 100\.0 MiB free, and the weights for it take 120\.0 MiB"):
            refuse_full(shared, [60 << 20, 60 << 20], found)


def test_gpus_on_a_machine_without_any_are_refused() -> None:
    refuse_unseen([("0",)], [Card("0", "GPU-aa", None, None)])
    with pytest.raises(ZppError, match="--gpu-ids 0: nvidia-smi finds no GPU"):
        refuse_unseen([("0",)], [])
