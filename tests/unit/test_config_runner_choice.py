# SPDX-License-Identifier: Apache-2.0
"""Every process of a pipeline uses vLLM's V1 model runner, unless the user chooses V2."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from zpptool.config.engine_kind import Engine
from zpptool.config.runner_choice import VARIABLE, check_runner_choice, choose_runner, runner_environment
from zpptool.engines.registry import check_engine
from zpptool.errors import ExitCode, ZppError
from zpptool.process.group import ProcessGroup
from zpptool.supervisor.stage_processes import child_environment

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("env", "added"), [({}, "0"), ({VARIABLE: ""}, "0"), ({VARIABLE: "0"}, None), ({VARIABLE: "1"}, None)]
)
def test_the_v1_runner_is_set_unless_the_user_names_one(env: dict[str, str], added: str | None) -> None:
    check_runner_choice(env)
    assert runner_environment(env).get(VARIABLE) == added


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm")
@pytest.mark.parametrize("value", ["2", "true"])
def test_a_choice_that_is_no_runner_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    for refuse in (lambda: check_engine(Engine.VLLM), choose_runner):
        with pytest.raises(ZppError, match=f"{VARIABLE}={value} is neither") as fault:
            refuse()
        assert fault.value.exit_code is ExitCode.USAGE
        assert "to 1 for V2" in str(fault.value.hint)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_the_embedded_engine_does_not_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    check_engine(Engine.TRANSFORMERS)


def test_a_child_has_it_in_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    log = tmp_path / "log"
    with ProcessGroup() as group:
        child = group.start("child", ["/bin/sh", "-c", f"echo runner ${VARIABLE}"], child_environment({}), log)
        child.popen.wait(20)
    assert log.read_text() == "runner 0\n"


def test_a_script_has_it_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    choose_runner()
    assert os.environ[VARIABLE] == "0"
