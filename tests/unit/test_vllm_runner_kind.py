# SPDX-License-Identifier: Apache-2.0
"""The kind of vLLM's model runner must be V1, and is compared at the roll call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

from zpptool.config.engine_kind import Engine  # noqa: E402
from zpptool.config.runner_choice import VARIABLE  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402
from zpptool.engines.vllm.compat.arguments import serve_arguments  # noqa: E402
from zpptool.engines.vllm.compat.engine_config import engine_config  # noqa: E402
from zpptool.engines.vllm.compat.runner_kind import require_v1_runner  # noqa: E402
from zpptool.engines.vllm.compat.worker_modules import WORKER_MODULES, imported_worker_modules  # noqa: E402
from zpptool.engines.vllm.core.executor import RingExecutor  # noqa: E402
from zpptool.engines.vllm.facts import agreed_facts  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402
from zpptool.ring.head.roll_call import disagreements  # noqa: E402
from zpptool.ring.messages import StageFacts  # noqa: E402


def spec_of(model: Path) -> StageSpec:
    return StageSpec(
        engine=Engine.VLLM, model=str(model), partition=((0, 4),), stage=0, bind="", connect="",
        engine_args=("--enforce-eager",),
    )  # fmt: skip


def test_a_stage_whose_vllm_would_use_v2_is_refused(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU vLLM refuses V2 itself, because there is no Triton; so the variable is changed after the configuration
    was made."""
    monkeypatch.setenv(VARIABLE, "0")
    config = engine_config(serve_arguments(spec_of(tiny_model("llama")), RingExecutor))
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(ZppError, match="vLLM uses its V2 model runner") as fault:
        require_v1_runner(config)
    assert fault.value.exit_code is ExitCode.USAGE
    assert f"{VARIABLE}=0" in str(fault.value.hint)


def test_the_roll_call_compares_the_kind(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tiny_model("llama"))
    monkeypatch.setenv(VARIABLE, "0")
    config = engine_config(serve_arguments(spec, RingExecutor))
    ours = agreed_facts(spec, config)
    monkeypatch.setenv(VARIABLE, "1")
    theirs = agreed_facts(spec, config)
    stage = StageFacts(stage=0, num_stages=1, layers=(0, 4), host="b", pid=7, agreed=theirs)
    assert disagreements(1, 4, ours, [stage]) == ["stage 0 (b, pid 7) has model runner V2, the head has V1"]


def test_without_a_worker_there_is_nothing_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORKER_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ZppError, match="imported none of its workers"):
        imported_worker_modules()
