# SPDX-License-Identifier: Apache-2.0
"""The roll call compares the kind of vLLM's model runner and its CUDA graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

from vllm.config.compilation import CUDAGraphMode  # noqa: E402

from zpptool.config.engine_kind import Engine  # noqa: E402
from zpptool.config.runner_choice import VARIABLE  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402
from zpptool.engines.vllm.compat.arguments import serve_arguments  # noqa: E402
from zpptool.engines.vllm.compat.engine_config import engine_config  # noqa: E402
from zpptool.engines.vllm.compat.runner_kind import graph_mode, refuse_model  # noqa: E402
from zpptool.engines.vllm.compat.worker_modules import WORKER_MODULES, imported_worker_modules  # noqa: E402
from zpptool.engines.vllm.core.executor import RingExecutor  # noqa: E402
from zpptool.engines.vllm.facts import agreed_facts  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402
from zpptool.ring.head.roll_call import disagreements  # noqa: E402
from zpptool.ring.messages import FITS_ALL, StageFacts  # noqa: E402


def spec_of(model: Path) -> StageSpec:
    return StageSpec(
        engine=Engine.VLLM, model=str(model), partition=((0, 4),), stage=0, bind="", connect="",
        engine_args=("--enforce-eager",),
    )  # fmt: skip


def test_the_roll_call_compares_the_kind(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tiny_model("llama"))
    monkeypatch.setenv(VARIABLE, "0")
    config = engine_config(serve_arguments(spec, RingExecutor))
    ours = agreed_facts(spec, config)
    monkeypatch.setenv(VARIABLE, "1")
    theirs = agreed_facts(spec, config)
    stage = StageFacts(stage=0, num_stages=1, layers=(0, 4), host="b", pid=7, agreed=theirs)
    assert disagreements(1, 4, ours, [stage]) == ["stage 0 (b, pid 7) has model runner V2, the head has V1"]


@pytest.mark.parametrize(
    ("diffusion", "images", "v2", "fault"),
    [
        (True, False, True, "several tokens of a sequence at once"),
        (False, True, True, "models that take images"),
        (False, True, False, ""),
        (False, False, True, ""),
    ],
)
def test_a_model_that_stages_do_not_support_with_a_runner_is_refused(
    diffusion: bool, images: bool, v2: bool, fault: str
) -> None:
    model = SimpleNamespace(is_diffusion=diffusion, is_multimodal_model=images)
    config: Any = SimpleNamespace(model_config=model, use_v2_model_runner=v2)
    if not fault:
        refuse_model(config)
        return
    with pytest.raises(ZppError, match=fault) as refused:
        refuse_model(config)
    assert refused.value.exit_code is ExitCode.USAGE


def config_with(mode: object, sizes: list[int] | None) -> Any:
    return SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=mode, cudagraph_capture_sizes=sizes))


def test_graphs_are_compared_by_mode_and_sizes(tiny_model: Callable[..., Path]) -> None:
    assert graph_mode(config_with(CUDAGraphMode.FULL_AND_PIECEWISE, [1, 2, 4])) == "full_and_piecewise of 1,2,4 tokens"
    assert graph_mode(config_with(CUDAGraphMode.NONE, [1, 2])) == FITS_ALL
    assert graph_mode(config_with(None, None)) == FITS_ALL
    spec = spec_of(tiny_model("llama"))
    assert graph_mode(engine_config(serve_arguments(spec, RingExecutor))) == FITS_ALL  # no graphs on a CPU


def test_stages_with_other_graphs_are_refused_and_one_without_any_is_not() -> None:
    graphs = {"CUDA graphs": "full of 1,2 tokens"}
    for theirs, refused in ("full of 1,4 tokens", True), ("full of 1,2 tokens", False), (FITS_ALL, False):
        stage = StageFacts(stage=0, num_stages=1, layers=(0, 4), host="b", pid=7, agreed={"CUDA graphs": theirs})
        assert bool(disagreements(1, 4, graphs, [stage])) is refused


def test_without_a_worker_there_is_nothing_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORKER_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ZppError, match="imported none of its workers"):
        imported_worker_modules()


def test_tests_of_v1_run_without_triton() -> None:
    """Triton is installed with xgrammar; vLLM uses it on a CPU in the environment of `tests/v2.py` alone."""
    from vllm.triton_utils import HAS_TRITON

    assert not HAS_TRITON
