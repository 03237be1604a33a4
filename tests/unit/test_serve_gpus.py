# SPDX-License-Identifier: Apache-2.0
"""Whole pipelines on the GPUs of one machine, as `serve` and `test-pipeline` order them. Its nvidia-smi is a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nvidiasmi
import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_pool import CUDA, Group
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.trial_plan import TrialOptions, plan_trial
from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))


def serving(model: Path, **said: Any) -> tuple[PipelineLaunchPlan, ...]:
    wish = {
        "model": model, "pipeline_dir": None, "plan_file": None, "num_stages": 2, "ranges": (), "engine": Engine.VLLM,
        "dtype": "auto", "device": "auto", "gpu_ids": (), "port": 0, "base_port": None, "api_port": None, "replicas": 1,
        "served_name": "", "engine_args": (), "start_timeout_s": 1.0, "step_timeout_s": 1.0, "beat_timeout_s": 1.0,
        "recovery_deadline_s": 120.0,
    }  # fmt: skip
    return plan_serving(ServeOptions(**{**wish, **said}))


def shown(orders: tuple[PipelineLaunchPlan, ...]) -> list[list[str]]:
    return [[env[CUDA] for env in order.env] for order in orders]


def flags(order: PipelineLaunchPlan) -> list[list[str]]:
    return [[word for word in spec.engine_args if word.startswith("--")] for spec in order.specs]


def test_each_stage_of_a_pipeline_has_a_gpu(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    orders = serving(model)
    assert shown(orders) == [["0", "1"]]
    assert flags(orders[0]) == [[], []]
    assert shown(serving(model, gpu_ids=(("1", "0"),))) == [["1", "0"]]


def test_replicas_share_where_there_are_too_few(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    orders = serving(model, replicas=2)
    assert shown(orders) == [["0", "1"], ["0", "1"]]
    for order in orders:
        assert flags(order) == [["--gpu-memory-utilization", "--kv-cache-memory-bytes"]] * 2
    uneven = serving(model, num_stages=3)
    assert shown(uneven) == [["0", "1", "0"]]
    assert [len(own) for own in flags(uneven[0])] == [2, 0, 2]


@pytest.mark.parametrize(
    ("gpu_ids", "said"),
    [
        ((("0", "7"),), "there is no GPU 7 on this machine"),
        ((("0", "1", "1"),), "3 GPUs are given for 2 stages"),
        ((("0",), ("1",), ("1",)), "3 groups of GPUs are given for 2 stages"),
    ],
)
def test_a_wrong_choice_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_ids: tuple[Group, ...], said: str
) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO)
    with pytest.raises(ZppError, match=said) as fault:
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
    (order,) = serving(model, gpu_ids=(("1", "0"),))
    assert [env["HIP_VISIBLE_DEVICES"] for env in order.env] == ["1", "0"]


def test_a_trial_gives_a_stage_all_its_gpus(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidiasmi.install(monkeypatch, tmp_path, nvidiasmi.TWO + "2, GPU-7e, 40960, 40100\n")
    order = plan_trial(
        TrialOptions(
            engine=Engine.VLLM, model=model, pipeline_dir=None, num_stages=2, ranges=(), prompts=("hello",),
            as_chat=False, with_long_prompts=False, batched=False, max_new_tokens=8, dtype="auto", device="auto",
            gpu_ids=(), base_port=None, api_port=None, engine_args=(), start_timeout_s=10.0, step_timeout_s=5.0,
            tensor_parallel_sizes=(2, 1),
        ),
        tmp_path,
        tmp_path,
    )  # fmt: skip
    assert [env[CUDA] for env in order.env] == ["0,1", "2"]
    assert "--gpu-memory-utilization" not in order.stages[0].engine_args
