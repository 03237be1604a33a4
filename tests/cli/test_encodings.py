# SPDX-License-Identifier: Apache-2.0
"""Standard streams that cannot encode every character, and file names that are not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.errors import ExitCode

pytestmark = pytest.mark.timeout(60)


def run(*words: str | bytes | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, whose standard streams have the encoding of this environment."""
    line = [sys.executable, "-m", "zpptool", *words]
    return subprocess.run(line, env={**os.environ, **environment}, capture_output=True, timeout=50, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_table_in_any_encoding(encoding: str) -> None:
    ran = run("validate-ranges", "--ranges", "0-2", "2-4", "--total-layers", "4", PYTHONIOENCODING=encoding)
    assert (ran.returncode, ran.stderr) == (ExitCode.OK, b"")
    lines = ran.stdout.decode(encoding).splitlines()
    assert set(lines[2]) in ({"-"}, {"─"})
    assert lines[-1] == "valid"


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_names_of_another_encoding(tmp_path: Path, environment: dict[str, str]) -> None:
    model = write_checkpoint(tmp_path / "modèle")
    output = os.fsencode(tmp_path) + b"/\xcb\xb5"
    ran = run("split", model, "--num-stages", "2", "-o", output, **environment)
    assert ran.returncode == ExitCode.OK, ran.stderr
    assert sorted(os.listdir(output)) == [b"stage_0", b"stage_1"]
    ran.stdout.decode("ascii")
    for words in (["validate", output], ["join", output, "-o", output + b"j", "--json"]):
        ran = run(*words, **environment)
        assert (ran.returncode, b"Traceback" in ran.stderr) == (ExitCode.OK, False), ran.stderr
