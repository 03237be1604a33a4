# SPDX-License-Identifier: Apache-2.0
"""Stages on the GPUs of a machine whose nvidia-smi is a script that prints what a real one prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import nvidiasmi
import pytest
from checkpoints import llama, llama_config, write_checkpoint
from nvidiasmi import ONE, TWO

from zpptool.config import gpu_plan as gpuplan
from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_discovery import Card, cards, find_card, names, parse_cards, refuse_missing
from zpptool.config.gpu_pool import BY_BUS, CUDA, ORDER, parse_gpu_ids
from zpptool.config.gpu_sharing import KV_BYTES, UTILIZATION
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError

LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5a2b)
  MIG 3g.20gb     Device  0: (UUID: MIG-11)
  MIG 3g.20gb     Device  1: (UUID: MIG-12)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-6c3d)
"""
QUERIED = "0, GPU-5a2b, 40960, 40100\n1, GPU-6c3d, 40960, [N/A]\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs an nvidia-smi that prints this."""
    return partial(nvidiasmi.install, monkeypatch, tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))


def stages(model: Path, *sizes: int, **fields: Any) -> list[StageSpec]:
    step = 4 // len(sizes)
    partition = tuple((first, first + step) for first in range(0, 4, step))
    return [
        StageSpec(
            engine=fields.get("engine", Engine.VLLM), model=str(model), partition=partition, stage=stage, bind="",
            connect="", tensor_parallel_size=size, engine_args=fields.get("engine_args", ()),
            runtime=RuntimeOptions(device=fields.get("device", "auto")),
        )
        for stage, size in enumerate(sizes)
    ]  # fmt: skip


def test_what_nvidia_smi_prints_is_read() -> None:
    found = parse_cards(QUERIED + "[N/A]\n", LISTED)
    assert found[0] == Card("0", "GPU-5a2b", 40960 << 20, 40100 << 20, ("MIG-11", "MIG-12"))
    assert found[1].free is None
    assert names(found) == ["MIG-11", "MIG-12", "1"]
    assert find_card(found, "GPU-6c") is found[1]
    assert find_card(found, "1") is found[1]
    assert find_card(found, "MIG-11") is find_card(found, "GPU-ff") is None
    refuse_missing(["MIG-12", "0", "GPU-6c3d"], found)
    with pytest.raises(ZppError, match="no GPU 2 on this machine") as fault:
        refuse_missing(["2"], found)
    assert fault.value.hint == "There are MIG-11, MIG-12, 1."


def test_without_a_card_there_is_nothing(smi: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    smi("no devices were found", code=9)
    assert cards() == ()
    monkeypatch.setenv("PATH", "/nowhere")
    assert cards() == ()
    specs = stages(model, 1, 1)
    placed = gpuplan.place_on_gpus(specs, ())
    assert (placed.specs, placed.groups, placed.env) == (tuple(specs), ((), ()), ({}, {}))


def test_each_stage_is_shown_the_next_gpus(smi: Any, model: Path) -> None:
    smi(TWO)
    specs = stages(model, 1, 1)
    placed = gpuplan.place_on_gpus(specs, ())
    assert placed.env == ({CUDA: "0", ORDER: BY_BUS}, {CUDA: "1", ORDER: BY_BUS})
    assert placed.specs == tuple(specs)
    assert gpuplan.place_on_gpus(stages(model, 2), ()).groups == (("0", "1"),)


def test_the_users_variable_is_the_pool(smi: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    smi(TWO)
    monkeypatch.setenv(CUDA, "GPU-6c3d,GPU-5a2b")
    assert gpuplan.place_on_gpus(stages(model, 1, 1), ()).env == ({CUDA: "GPU-6c3d"}, {CUDA: "GPU-5a2b"})


@pytest.mark.parametrize("chosen", [None, "1,1", "1,GPU-6c3d"])
def test_a_gpu_that_is_shared_is_shared_out(smi: Any, model: Path, chosen: str | None) -> None:
    smi(TWO if chosen else ONE)
    placed = gpuplan.place_on_gpus(stages(model, 1, 1, engine_args=("--enforce-eager",)), parse_gpu_ids(chosen))
    for spec in placed.specs:
        eager, flag, part, cache_flag, cache = spec.engine_args
        assert (eager, flag, part, cache_flag) == ("--enforce-eager", UTILIZATION, "0.46", KV_BYTES)
        assert 0 < int(cache) < (40960 << 20) * 0.46


def test_the_embedded_engine_gets_no_arguments_about_memory(smi: Any, model: Path) -> None:
    smi(ONE)
    placed = gpuplan.place_on_gpus(stages(model, 1, 1, engine=Engine.TRANSFORMERS), ())
    assert [spec.engine_args for spec in placed.specs] == [(), ()]
    assert placed.groups == (("0",), ("0",))


@pytest.mark.parametrize("how", ["asked", "built"])
def test_on_a_cpu_nothing_changes(smi: Any, monkeypatch: pytest.MonkeyPatch, model: Path, how: str) -> None:
    smi(TWO)
    if how == "built":
        monkeypatch.setattr(gpuplan, "version", lambda _name: "2.13.0+cpu")
    device = "cpu" if how == "asked" else "auto"
    specs = stages(model, 1, 1, device=device)
    placed = gpuplan.place_on_gpus(specs, ())
    assert (placed.specs, placed.env) == (tuple(specs), ({}, {}))
    assert gpuplan.environment_of_one(stages(model, 4, device=device)[0], ()) == {}


def test_a_missing_gpu_is_refused_before_its_memory_is(smi: Any, model: Path) -> None:
    smi(TWO)
    with pytest.raises(ZppError, match="there is no GPU 7 on this machine"):
        gpuplan.place_on_gpus(stages(model, 1, 1), parse_gpu_ids("7,7"))


def test_a_stage_that_is_started_alone(smi: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    smi(TWO)
    assert gpuplan.environment_of_one(stages(model, 2)[0], ()) == {}
    assert gpuplan.environment_of_one(stages(model, 2)[0], (("0", "1"),)) == {CUDA: "0,1", ORDER: BY_BUS}
    with pytest.raises(ZppError, match=r"takes 3 GPUs .*, and 2 can be seen: 0, 1"):
        gpuplan.environment_of_one(stages(model, 3)[0], ())
    with pytest.raises(ZppError, match="1 GPUs are given for 1 stages, which take 2"):
        gpuplan.environment_of_one(stages(model, 2)[0], (("0",),))
    monkeypatch.setenv(CUDA, "1")
    with pytest.raises(ZppError, match=r"takes 2 GPUs .*, and 1 can be seen: 1"):
        gpuplan.environment_of_one(stages(model, 2)[0], ())
