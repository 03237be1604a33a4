# SPDX-License-Identifier: Apache-2.0
"""The variables between a parent and its children: all in one file, and what is written is what is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.process import environment

PACKAGE = Path(environment.__file__).parents[1]
SPEC = StageSpec(Engine.VLLM, "m", ((0, 2), (2, 4)), 0, "ipc:///b", "ipc:///c")
SET_BY_USERS = {"__main__.py", "cli", "config", "serve", "deploy", "sources"}
"""Places whose variables are the command line's, or set by users like those."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in environment.VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_no_other_file_names_a_variable() -> None:
    """Apart from the two of the logging, which is a floor below."""
    named: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE)
        if place.parts[0] not in SET_BY_USERS:
            for variable in re.findall(r'"(ZPP_[A-Z_]+)"', path.read_text()):
                named.setdefault(str(place), set()).add(variable)
    logging = {environment.LEVEL_VARIABLE, environment.FORMAT_VARIABLE}
    assert named == {"process/environment.py": set(environment.VARIABLES - logging), "log.py": logging}


def test_a_child_watches_the_parent_it_was_given_and_its_own_children_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.take_parent_pid() == os.getppid()
    for name, value in environment.parent_variables().items():
        monkeypatch.setenv(name, value)
    assert environment.take_parent_pid() == os.getpid()
    assert environment.take_parent_pid() == os.getppid()


def test_files_are_passed_to_a_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (environment.phase_file(), environment.next_spec_file()) == (None, None)
    for name, value in environment.file_variables(tmp_path / "stage-1", tmp_path / "stage-1.spec").items():
        monkeypatch.setenv(name, value)
    assert environment.phase_file() == tmp_path / "stage-1"
    assert environment.next_spec_file() == tmp_path / "stage-1.spec"


def test_the_head_is_passed_to_the_engine_core_and_removed_again(tmp_path: Path) -> None:
    with environment.head_variables(SPEC, tmp_path / "fault"):
        assert environment.head_spec() == SPEC
        assert environment.head_fault_file() == tmp_path / "fault"
    assert environment.head_fault_file() is None
    with pytest.raises(KeyError):
        environment.head_spec()
