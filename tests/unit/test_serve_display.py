# SPDX-License-Identifier: Apache-2.0
"""The display of the stages' phases: log lines, and the live table."""

from __future__ import annotations

import io
import logging
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from zpptool.console import Console
from zpptool.log import LogFormat, LogLevel, configure, hide_information
from zpptool.serve.display import LineDisplay, LiveDisplay, Row, display_for

pytestmark = pytest.mark.usefixtures("own_logging")
PHASES = ("starting", "starting", "loading 0%", "loading 12%", "loading 50%", "loaded", "ready", "ready")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def show_all(display: LineDisplay) -> None:
    for phase in PHASES:
        display.show([Row("pipeline", 1, "2-4", 7, phase)])


def test_a_line_is_logged_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.TEXT)
    show_all(LineDisplay(Console()))
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["starting", "loading 0%", "loading 50%", "loaded", "ready"]
    assert lines[0] == "pipeline, stage 1 (layers 2-4, pid 7): starting"


def test_a_quiet_command_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.TEXT)
    hide_information()
    show_all(LineDisplay(Console(quiet=True)))
    logging.getLogger("zpptool.serve").warning("a warning")
    assert capsys.readouterr().err == "warning: a warning\n"
    configure(LogLevel.ERROR, LogFormat.TEXT)
    hide_information()
    logging.getLogger("zpptool.serve").warning("a warning")
    assert capsys.readouterr().err == ""


def test_log_records_appear_above_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    configure(LogLevel.INFO, LogFormat.TEXT)
    assert isinstance(display_for(Console(quiet=True)), LineDisplay)
    display = display_for(Console())
    assert isinstance(display, LiveDisplay)
    display.show([Row("pipeline", 1, "2-4", 7, "starting")])
    long_record = "a record of [1/2] " + "x" * 200
    logging.getLogger("zpptool.serve").info(long_record)
    display.show([Row("pipeline", 1, "2-4", 7, "ready")])
    display.close()
    assert sys.stderr is terminal
    shown = terminal.getvalue()
    assert long_record in shown, "no line is wrapped or taken for markup"
    assert shown.index("starting") < shown.index(long_record) < shown.index("ready")
