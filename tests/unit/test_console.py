# SPDX-License-Identifier: Apache-2.0
"""Untrusted names are printed without control characters."""

from __future__ import annotations

import json

import pytest

from zpptool.console import Console
from zpptool.errors import ZppError
from zpptool.log import LogFormat, LogLevel, configure

NAME = "model.\x1b[2J\x9b31m\r.weight"
SHOWN = r"model.\x1b[2J\x9b31m\x0d.weight"


@pytest.mark.usefixtures("own_logging")
def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.TEXT)
    console = Console()
    console.line(NAME)
    console.note(NAME)
    console.warn(NAME)
    console.error(ZppError(NAME, NAME))
    console.table(NAME, ["name"], [[NAME]])
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 3
    assert err.count(SHOWN) == 4
    assert not {"\x1b", "\x9b", "\r"} & set(out + err)


def test_lines_stay_lines_and_json_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Console().line("a\n\tb")
    assert capsys.readouterr().out == "a\n\tb\n"
    Console(as_json=True).result({"name": NAME}, lambda _out: None)
    assert json.loads(capsys.readouterr().out)["name"] == NAME
