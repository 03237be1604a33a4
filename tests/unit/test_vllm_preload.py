# SPDX-License-Identifier: Apache-2.0
"""A spare process has imported the worker of vLLM's platform, and in the order that vLLM asks for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from zpptool.config.engine_kind import Engine  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402

SCRIPT = """
import sys
from zpptool.engines.vllm import head, preload, worker
from zpptool.config.stage_spec import spec_from_argv
early = [name for name in sys.modules if name.startswith("vllm.v1.worker.") and name.endswith("_worker")]
preload.preload(spec_from_argv(sys.argv))
order = list(sys.modules)
first, second = order.index("vllm.v1.worker.cpu.shm"), order.index("vllm.v1.worker.gpu_worker")
print("ZPP", early, "vllm.v1.worker.cpu_worker" in sys.modules, first < second)
"""


@pytest.mark.timeout(120)
def test_preload_imports_the_platforms_worker_before_the_one_it_builds_on(tiny_model: Callable[..., Path]) -> None:
    spec = StageSpec(
        engine=Engine.VLLM, model=str(tiny_model("llama")), partition=((0, 4),), stage=0, bind="", connect="",
        engine_args=("--enforce-eager",),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, spec.to_json()], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.rpartition("ZPP ")[2].strip() == "[] True True"
