# SPDX-License-Identifier: Apache-2.0
"""What `zpptool.LLM` refuses about GPUs and the model runner before it starts anything."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

from zpptool.config.runner_choice import VARIABLE  # noqa: E402
from zpptool.engines.vllm.offline.llm import LLM  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402


def test_gpus_are_for_stages_that_are_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with pytest.raises(ZppError, match="gpu_ids is for stages that are started here"):
        LLM("model", num_stages=2, launch=False, gpu_ids="0,1")


def test_a_choice_that_is_no_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    with pytest.raises(ZppError, match=f"{VARIABLE}=2 is neither"):
        LLM("model", num_stages=2)
