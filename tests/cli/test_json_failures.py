# SPDX-License-Identifier: Apache-2.0
"""With --json every failure is exactly one object on stdout, with the exit code that the process ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from commands import typed_here
from conftest import Ran

from zpptool.__main__ import TRUE
from zpptool.cli.refusals import asks_for_json
from zpptool.errors import ExitCode
from zpptool.partition import MAX_STAGES

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return typed_here(monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


WRONG = {
    "a word for a number": (["split", "MODEL", "--num-stages", "two", "--dry-run"], ExitCode.USAGE),
    "a number out of range": (["validate-ranges", "--ranges", "0-1", "--total-layers", "0"], ExitCode.USAGE),
    "no such choice": (["split", "MODEL", "--num-stages", "2", "--dry-run", "--mode", "move"], ExitCode.USAGE),
    "a missing option": (["join", "MODEL"], ExitCode.USAGE),
    "a missing argument": (["join", "-o", "OUT"], ExitCode.USAGE),
    "a missing value": (["plan-ports", "--num-stages"], ExitCode.USAGE),
    "no such option": (["doctor", "--helpp"], ExitCode.USAGE),
    "no such command": (["spilt", "MODEL"], ExitCode.USAGE),
    "no such command of a group": (["keys", "make"], ExitCode.USAGE),
    "too many arguments": (["plan-ports", "--num-stages", "2", "3"], ExitCode.USAGE),
    "a flag with a value": (["split", "MODEL", "--force=yes", "--num-stages", "2"], ExitCode.USAGE),
    "no directory": (["split", "MODEL/none", "--num-stages", "2", "--dry-run"], ExitCode.INVALID),
    "a level of the log": (["--log-level", "loud", "plan-ports", "--num-stages", "2"], ExitCode.USAGE),
    "no file of settings": (["--config", "MODEL/none", "plan-ports", "--num-stages", "2"], ExitCode.INVALID),
    "engine arguments": (["plan-ports", "--num-stages", "2", "--json", "--", "--seed", "1"], ExitCode.USAGE),
    "too many stages": (["plan-ports", "--num-stages", "1000000"], ExitCode.ADDRESS),
    "too many keys": (["keys", "generate", "--num-stages", "1000000", "-o", "OUT"], ExitCode.USAGE),
    "a huge number": (["validate-ranges", "--num-stages", "9" * 5000, "--total-layers", "4"], ExitCode.USAGE),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_failure_is_one_object(typed: Callable[..., Ran], model: Path, tmp_path: Path, name: str) -> None:
    words, code = WRONG[name]
    line = [word.replace("MODEL", str(model)).replace("OUT", str(tmp_path / "out")) for word in words]
    ran = typed(*line, *([] if "--" in line else ["--json"]))
    assert ran.code == code, ran.err
    error = json.loads(ran.out)["error"]
    assert error["exit_code"] == code
    assert error["message"]
    assert "\n" not in error["message"]
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err


def test_json_from_the_environment_and_from_a_file(
    typed: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("plan-ports:\n  json: true\n")
    ran = typed("--config", settings, "plan-ports", "--num-stages", "x")
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == ExitCode.USAGE
    assert typed("--config", settings, "keys", "generate").out == ""
    monkeypatch.setenv("ZPP_JSON", "1")
    ran = typed("split", "--num-stages", "x")
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == ExitCode.USAGE


def test_the_entry_knows_the_same_values() -> None:
    assert {value for value in TRUE if asks_for_json([], {"ZPP_JSON": value})} == set(TRUE)
    assert not asks_for_json([], {"ZPP_JSON": "json"})


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["split", "--json"], {}, True),
        (["split"], {}, False),
        (["split"], {"ZPP_JSON": "Yes"}, True),
        (["split"], {"ZPP_JSON": "0"}, False),
        (["split"], {"ZPP_JSON": ""}, False),
    ],
)
def test_whether_json_is_asked_for(arguments: list[str], environment: dict[str, str], expected: bool) -> None:
    assert asks_for_json(arguments, environment) is expected


def test_a_fault_of_zpptool_is_an_object_too(
    typed: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback is for a report, the object for the script."""

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("zpptool.cli.plan_ports.plan_endpoints", broken)
    with pytest.raises(ZeroDivisionError):
        typed("plan-ports", "--num-stages", "2", "--json")
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "internal error: ZeroDivisionError: a bug"


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("words", [["plan-ports", "--num-stages", "2"], ["plan-ports", "--num-stages", "0"]])
def test_a_full_disk_as_stdout(words: list[str], form: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "zpptool", *words, *form],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    wrong = words[-1] == "0"
    assert ran.returncode == (ExitCode.USAGE if wrong else ExitCode.FAILURE)
    first = "error: a pipeline has" if wrong else "error: standard output cannot be written to: No space"
    assert ran.stderr.startswith(first)
    assert len(ran.stderr.splitlines()) == 1


ABSURD = {
    "each layer a stage": (["--ranges", *(f"{n}-{n + 1}" for n in range(5000))], 5000, ExitCode.OK),
    "the same range": (["--ranges", *["0-5000"] * 5000], 5000, ExitCode.INVALID),
    "nested ranges": (["--ranges", *(f"{n}-{10**6 - n}" for n in range(5000))], 10**6, ExitCode.INVALID),
    "gaps": (["--ranges", *(f"{2 * n}-{2 * n + 1}" for n in range(5000))], 10**4, ExitCode.INVALID),
    "many ranges": (["--ranges", ",".join(["0-1"] * 20_000)], 10**6, ExitCode.INVALID),
    "a million stages": (["--num-stages", str(10**6)], 10**6, ExitCode.INVALID),
    "the most stages": (["--num-stages", str(MAX_STAGES)], 10**6, ExitCode.OK),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_plans_are_answered_quickly(typed: Callable[..., Ran], name: str) -> None:
    words, total, code = ABSURD[name]
    steps = 0

    def count(_frame: object, _event: str, _argument: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        ran = typed("validate-ranges", *words, "--total-layers", total, "--json")
    finally:
        sys.setprofile(None)
    assert ran.code == code, ran.err
    assert steps < 2_000_000, "a pair of stages costs a call"
    json.loads(ran.out)


def test_a_refusal_names_a_few_faults(typed: Callable[..., Ran], model: Path) -> None:
    ran = typed("split", model, "--ranges", *["0-4"] * 3000, "--dry-run")
    assert ran.code == ExitCode.INVALID
    assert len(ran.err) < 2000
    assert "and 91 more" in ran.err
