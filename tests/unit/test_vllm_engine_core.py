# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine core rests after a step that neither computed nor answered anything, and for nobody else's sake."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.engine import core as vllm_core  # noqa: E402

from zpptool.engines.vllm.compat.engine_core import go_on_after_answers  # noqa: E402

Rests = Callable[[dict[int, str], bool, type], list[float]]


class Ours:
    """An executor of stages."""


class Others:
    """Any other one."""


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> Rests:
    """For how long vLLM's own loop sleeps after a step, by what came of it and whose executor did it."""
    slept: list[float] = []
    monkeypatch.setattr(vllm_core.time, "sleep", slept.append)
    monkeypatch.setattr(vllm_core.EngineCore, "step_with_batch_queue", lambda core: (core.came_of_it, core.computed))
    go_on_after_answers(Ours)
    go_on_after_answers(Ours)  # once more changes nothing

    def after(came_of_it: dict[int, str], computed: bool, executor: type) -> list[float]:
        core: Any = object.__new__(vllm_core.EngineCoreProc)
        core.came_of_it, core.computed = came_of_it, computed
        core.model_executor = executor()
        core.scheduler = SimpleNamespace(has_requests=lambda: True)
        core.output_queue = SimpleNamespace(put_nowait=lambda _output: None)
        core.post_step = lambda _computed: None
        core.step_fn = core.step_with_batch_queue
        slept.clear()
        core._process_engine_step()
        return list(slept)

    return after


def test_an_answer_is_followed_by_the_next_step_at_once(rests: Rests) -> None:
    assert rests({0: "a token"}, False, Ours) == []


def test_a_core_with_nothing_to_do_rests_as_ever(rests: Rests) -> None:
    assert rests({}, False, Ours) == [0.001]


def test_engines_without_stages_are_as_they_were(rests: Rests) -> None:
    assert rests({0: "a token"}, False, Others) == [0.001]
    assert rests({0: "a token"}, True, Others) == []
