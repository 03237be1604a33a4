# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine core sleeps only after a step that neither computed nor answered anything; other engines are
unchanged."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.engine import core as vllm_core  # noqa: E402

from zpptool.engines.vllm.compat.engine_core import skip_sleep_after_answers  # noqa: E402

Sleeps = Callable[[dict[int, str], bool, type], list[float]]


class Ours:
    """Takes the place of the ring's executor."""


class Others:
    """Takes the place of any other executor."""


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    """How long vLLM's own loop sleeps after a step, by its outputs, by whether it computed, and by its executor."""
    slept: list[float] = []
    monkeypatch.setattr(vllm_core.time, "sleep", slept.append)
    monkeypatch.setattr(vllm_core.EngineCore, "step_with_batch_queue", lambda core: (core.outputs, core.computed))
    skip_sleep_after_answers(Ours)
    skip_sleep_after_answers(Ours)  # a second call changes nothing

    def after(outputs: dict[int, str], computed: bool, executor: type) -> list[float]:
        core: Any = object.__new__(vllm_core.EngineCoreProc)
        core.outputs, core.computed = outputs, computed
        core.model_executor = executor()
        core.scheduler = SimpleNamespace(has_requests=lambda: True)
        core.output_queue = SimpleNamespace(put_nowait=lambda _output: None)
        core.post_step = lambda _computed: None
        core.step_fn = core.step_with_batch_queue
        slept.clear()
        core._process_engine_step()
        return list(slept)

    return after


def test_an_answer_is_followed_by_the_next_step_at_once(sleeps: Sleeps) -> None:
    assert sleeps({0: "a token"}, False, Ours) == []


def test_an_idle_engine_core_sleeps(sleeps: Sleeps) -> None:
    assert sleeps({}, False, Ours) == [0.001]


def test_engines_without_stages_are_unchanged(sleeps: Sleeps) -> None:
    assert sleeps({0: "a token"}, False, Others) == [0.001]
    assert sleeps({0: "a token"}, True, Others) == []
