# SPDX-License-Identifier: Apache-2.0
"""A command whose standard streams its parent has closed ends with one line and an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zpptool.errors import ExitCode

pytestmark = pytest.mark.timeout(60)
PORTS = "plan-ports --num-stages 2"


def run(command: str, closed: str) -> subprocess.CompletedProcess[str]:
    """The command line with streams closed by the shell."""
    line = f'exec "{sys.executable}" -m zpptool {command} {closed}'
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("command", [PORTS, f"{PORTS} --json", "--version", "--help", "validate-ranges --help"])
def test_a_closed_stdout_is_one_line(command: str) -> None:
    ran = run(command, ">&-")
    assert ran.returncode == ExitCode.USAGE
    assert ran.stderr.startswith("error: standard output is closed: the result cannot be printed\n  hint: ")
    assert len(ran.stderr.splitlines()) == 2
    assert ran.stdout == ""


def test_a_closed_stderr_does_not_change_the_exit_code() -> None:
    ran = run(PORTS, "2>&-")
    assert (ran.returncode, ran.stderr) == (ExitCode.OK, "")
    assert "15550" in ran.stdout
    assert run("validate-ranges --ranges 0-1 2-3 --total-layers 3", "2>&-").returncode == ExitCode.INVALID
    assert run("status --url http://127.0.0.1:1", "2>&-").returncode == ExitCode.ADDRESS
    assert run(PORTS, "2>&- >&-").returncode == ExitCode.USAGE


def test_a_closed_stdin_is_not_missed() -> None:
    assert run(PORTS, "<&-").returncode == ExitCode.OK
