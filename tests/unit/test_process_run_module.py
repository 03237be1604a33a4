# SPDX-License-Identifier: Apache-2.0
"""A module run as a child, also one that is still importing when its parent is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(60)

SLOW = "import time\nfrom pathlib import Path\nPath(__file__ + '.begun').touch()\ntime.sleep(600)\n"
PARENT = (
    "import sys, time\n"
    "from zpptool.process.group import ProcessGroup\n"
    "argv = [sys.executable, '-m', 'zpptool.process.run_module', 'slow_module', 'x']\n"
    "child = ProcessGroup().start('stage 0', argv, {})\n"
    "print(child.popen.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def test_a_child_that_imports_does_not_outlive_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while not (tmp_path / "slow_module.py.begun").exists():
            assert child.is_running()
            time.sleep(0.05)
        parent.kill()
        assert psutil.wait_procs([child], timeout=30)[1] == []


def test_the_module_sees_its_own_name_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown.py").write_text("import sys\nprint(__name__, __spec__.name, sys.argv[1:])\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    ran = subprocess.run(
        [sys.executable, "-m", "zpptool.process.run_module", "shown", "spec"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "__main__ shown ['spec']\n"
