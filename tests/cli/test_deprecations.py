# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/deprecations.md holds: the old name works and warns, and no deprecated name is missing there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from checkpoints import llama, llama_config, write_checkpoint
from commands import typed_here
from conftest import Ran

import zpptool
from zpptool.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs/deprecations.md"
_ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| ([\d.]+) \|$", re.MULTILINE)
_NAMED_IN_CODE = re.compile(r"(--[\w-]+) is deprecated")


class Row(NamedTuple):
    """One deprecated flag: `old` is the command line up to the flag, `new` the flag that replaces it."""

    old: str
    new: str
    since: str


ROWS = [Row(*found) for found in _ROW.findall(PAGE.read_text())]


def test_every_line_of_the_table_is_read() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert len(lines) - 2 == len(ROWS) > 0


def test_every_flag_that_the_code_calls_deprecated_is_in_the_table() -> None:
    package = Path(zpptool.__file__).parent
    named = {flag for file in package.rglob("*.py") for flag in _NAMED_IN_CODE.findall(file.read_text())}
    assert named <= {row.old.rpartition(" ")[2] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.old)
def test_the_old_name_works_and_warns(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_logging: None
) -> None:
    run: Callable[..., Ran] = typed_here(monkeypatch, capsys)
    program, command, flag = shlex.split(row.old)
    assert program == "zpptool"
    taken = {name for item in typer.main.get_command(app).commands[command].params for name in item.opts}  # type: ignore[attr-defined]
    assert {flag, row.new} <= taken
    monkeypatch.setitem(sys.modules, "vllm", None)  # so that nothing is started
    model = write_checkpoint(tmp_path / "model", llama(), llama_config())
    place = (model, "--stage-idx", 1, "--total-stages", 2, "--insecure")
    old = run(command, *place, flag, "10.0.0.1:15550")
    new = run(command, *place, row.new, "10.0.0.1:15550")
    warning, *others = old.err.splitlines()
    assert warning.startswith("warning: ")
    assert " is deprecated" in warning
    assert "--prev-stage-service-addr" in warning
    assert (old.code, others) == (new.code, new.err.splitlines())
    assert "not installed" in old.err
