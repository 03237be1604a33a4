# SPDX-License-Identifier: Apache-2.0
"""Log lines in both formats, and how they are configured."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.log import LEVEL_VARIABLE, LogFormat, LogLevel, configure, place_logger
from zpptool.places import HEAD

pytestmark = pytest.mark.usefixtures("own_logging")


def test_text_names_the_place_and_any_level_but_information(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log = place_logger("zpptool.some.module", 1)
    log.info("waiting for %s", "stage 0")
    log.warning("slow")
    log.debug("not shown")
    logging.getLogger("zpptool.cli").info("no place")
    expected = "zpptool stage 1: waiting for stage 0\nzpptool stage 1: warning: slow\nno place\n"
    assert capsys.readouterr().err == expected


def test_the_error_that_ends_a_process_begins_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure(place="stage 2")
    log = logging.getLogger("zpptool.x")
    log.error("lost a message")
    log.error("it broke", extra={"hint": "Mend it.", "exit_code": 6})
    configure()
    log.error("it broke", extra={"hint": None, "exit_code": 6})
    expected = "zpptool stage 2: error: lost a message\nerror: stage 2: it broke\n  hint: Mend it.\nerror: it broke\n"
    assert capsys.readouterr().err == expected


def test_a_module_that_is_run_as_a_process_logs_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    place_logger("__main__", 1).info("loading layers 1-4")
    assert capsys.readouterr().err == "zpptool stage 1: loading layers 1-4\n"


def test_a_process_has_a_place_for_records_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure(place="stage 2")
    logging.getLogger("zpptool.x").info("loading")
    place_logger("zpptool.x", HEAD).info("gathering")
    assert capsys.readouterr().err == "zpptool stage 2: loading\nzpptool head: gathering\n"


def test_json_is_one_object_a_line_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure(form=LogFormat.JSON, level=LogLevel.DEBUG, place="head")
    place_logger("zpptool.ring.head", 3).debug("two\nlines", extra={"epoch": 4, "request_id": "cmpl-1"})
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("zpptool.y").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "debug", "logger": "zpptool.ring.head", "stage": "stage 3", "epoch": 4, "request_id": "cmpl-1",
        "message": "two\nlines",
    }  # fmt: skip
    assert second["stage"] == "head"
    assert "ValueError: no" in second["traceback"]


def test_children_inherit_level_and_format(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.WARNING, LogFormat.JSON)
    configure()  # as a child does, with the environment of its parent
    logging.getLogger("zpptool.z").info("not shown")
    logging.getLogger("zpptool.z").warning("shown")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["shown"]


def test_an_unknown_level_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, "loud")
    with pytest.raises(ZppError, match="ZPP_LOG_LEVEL is 'loud'") as refused:
        configure()
    assert refused.value.exit_code is ExitCode.USAGE
    assert "warning" in str(refused.value.hint)


def test_a_log_that_cannot_be_written_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        logging.getLogger("zpptool").info("into the void " * 1000)


def test_names_from_files_of_others_send_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    name = "\x1b]0;title\x07\x1b[31m\x9b5m\rtensor"
    extra = {"hint": f"rename {name}", "exit_code": 3}
    logging.getLogger("zpptool.test").error("there is no tensor %s\nsecond line", name, extra=extra)
    shown = r"\x1b]0;title\x07\x1b[31m\x9b5m\x0dtensor"
    assert capsys.readouterr().err == f"error: there is no tensor {shown}\nsecond line\n  hint: rename {shown}\n"
