# SPDX-License-Identifier: Apache-2.0
"""Launch plans from the options of `serve`: addresses, memory, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ExitCode, ZppError
from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))
    return tmp_path / "model"


@pytest.fixture
def planned(model: Path) -> Callable[..., tuple[PipelineLaunchPlan, ...]]:
    def plan(**changes: object) -> tuple[PipelineLaunchPlan, ...]:
        options = {
            "model": model, "pipeline_dir": None, "plan_file": None, "num_stages": 2, "ranges": (),
            "engine": Engine.TRANSFORMERS, "dtype": "auto", "gpu_ids": (), "port": 0,
            "base_port": None, "api_port": None, "replicas": 1, "served_name": "", "engine_args": (),
            "runtime": RuntimeOptions(device="cpu", recovery_deadline_s=120.0),
        }  # fmt: skip
        return plan_serving(ServeOptions(**{**options, **changes}))  # type: ignore[arg-type]

    return plan


def test_over_ipc_each_start_has_its_own_addresses(planned, tmp_path: Path) -> None:
    [launch_plan] = planned()
    first, second = launch_plan.at(tmp_path / "a"), launch_plan.at(tmp_path / "b")
    assert first[0].bind == first[1].connect == f"ipc://{tmp_path}/a/zpp-15550"
    assert {spec.api_port for spec in first} != {spec.api_port for spec in second}
    assert [spec.layers.start for spec in first] == [0, 2]


def test_replicas_have_consecutive_ports(planned, tmp_path: Path) -> None:
    plans = planned(replicas=2, base_port=21000, api_port=21900)
    assert [plan.at(tmp_path)[0].bind for plan in plans] == ["tcp://127.0.0.1:21000", "tcp://127.0.0.1:21003"]
    assert [plan.at(tmp_path)[1].bind for plan in plans] == ["tcp://127.0.0.1:21002", "tcp://127.0.0.1:21005"]
    assert [plan.at(tmp_path)[0].api_port for plan in plans] == [21900, 21901]


def test_stages_of_vllm_on_one_cpu_share_its_memory_for_their_caches(planned) -> None:
    [launch_plan] = planned(engine=Engine.VLLM)
    *_, flag, share = launch_plan.specs[0].engine_args
    assert flag == "--kv-cache-memory-bytes"
    assert 0 < 2 * int(share) < psutil.virtual_memory().total
    given = ("--kv_cache_memory_bytes=1000",)
    assert planned(engine=Engine.VLLM, engine_args=given)[0].specs[0].engine_args == given


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"num_stages": 9}, ExitCode.INVALID, "9 stages"),
        ({"num_stages": None}, ExitCode.USAGE, "how many stages"),
        ({"engine_args": ("--port=1",)}, ExitCode.USAGE, "is for the front"),
        ({"engine_args": ("--api_key", "x")}, ExitCode.USAGE, "is for the front"),
        ({"engine_args": ("--pipeline-parallel-size", "2")}, ExitCode.USAGE, "--pipeline-parallel-size after --"),
        ({"gpu_ids": (("0",),)}, ExitCode.USAGE, "1 GPUs are given for 2 stages"),
        ({"base_port": 65534}, ExitCode.ADDRESS, "65535"),
        ({"base_port": 21000, "api_port": 21002}, ExitCode.ADDRESS, "21002"),
        ({"base_port": 21000, "port": 21002}, ExitCode.ADDRESS, "the front's port 21002"),
        ({"base_port": 21000, "port": 21005, "replicas": 2}, ExitCode.ADDRESS, "the front's port 21005"),
        ({"api_port": 21002, "port": 21002}, ExitCode.ADDRESS, "the front's port 21002"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused_before_anything_starts(
    planned, changes, code: ExitCode, text: str
) -> None:
    with pytest.raises(ZppError) as refused:
        planned(**changes)
    assert refused.value.exit_code == code
    assert text in refused.value.message
