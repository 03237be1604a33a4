# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM at any time, also while Python imports the package: one line, one object, and exit code 130."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import write_sparse

from zpptool.errors import ExitCode

pytestmark = pytest.mark.timeout(100)
SCRIPT = [sys.executable, "-c", "import sys; from zpptool.__main__ import main; sys.exit(main())"]
MODULE = [sys.executable, "-m", "zpptool"]


def catches(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a process has installed a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:\t")[2].split()[0], 16) >> (number - 1) & 1)


def interrupt(words: list[str], number: signal.Signals, delay_s: float) -> tuple[int, str, str]:
    """Run a command, signal it this long after it can handle signals, and return exit code, stdout and stderr."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not catches(process, signal.SIGTERM):  # Python itself handles SIGINT, from its start on
            assert process.poll() is None, process.communicate()
        time.sleep(delay_s)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "start"), [(signal.SIGINT, MODULE), (signal.SIGTERM, SCRIPT)], ids=["module", "script"]
)
@pytest.mark.parametrize("delay_ms", [0, 40, 90, 180, 300])
def test_an_early_interrupt(tmp_path: Path, number: signal.Signals, start: list[str], delay_ms: int) -> None:
    model = write_sparse(tmp_path / "model", 2**31)
    words = [*start, "split", str(model), "--num-stages", "2", "-o", str(tmp_path / "out"), "--json", "--quiet"]
    code, out, err = interrupt(words, number, delay_ms / 1000)
    assert (code, err) == (ExitCode.INTERRUPTED, "interrupted\n")
    assert json.loads(out)["error"] == {"message": "interrupted", "hint": None, "exit_code": 130}
    assert not (tmp_path / "out").exists()


def test_text_has_one_line() -> None:
    assert interrupt([*MODULE, "plan-ports", "--num-stages", "2"], signal.SIGINT, 0) == (130, "", "interrupted\n")


def test_what_follows_the_dashes_is_the_engines() -> None:
    code, out, _err = interrupt([*MODULE, "serve", "--", "--json"], signal.SIGTERM, 0)
    assert (code, out) == (130, "")


def test_an_interrupt_at_any_time_is_one_object() -> None:
    words = [*MODULE, "validate-ranges", "--num-stages", "3000", "--total-layers", "3000", "--json"]
    for delay_s in (0.2, 0.3, 0.4, 0.5):
        code, out, err = interrupt(words, signal.SIGTERM, delay_s)
        assert code in (ExitCode.OK, ExitCode.INTERRUPTED), err
        assert "Traceback" not in err
        if out or code == ExitCode.OK or "interrupted" in err:
            assert json.loads(out)["schema_version"] == 1


def test_an_interrupt_while_the_result_is_printed_waits_for_its_end() -> None:
    """The result is longer than a pipe holds, so printing it lasts until it is read. A second signal does not wait."""
    words = [*MODULE, "validate-ranges", "--num-stages", "9000", "--total-layers", "9000", "--json"]
    for signals in (1, 2):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            begun = process.stdout.read(1)
            for _ in range(signals):
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
            if signals == 2:
                assert process.wait(10) == ExitCode.INTERRUPTED
            out = process.stdout.read()
        assert process.returncode == ExitCode.INTERRUPTED
        assert signals == 2 or json.loads(begun + out)["schema_version"] == 1


def test_an_ignored_signal_stays_ignored() -> None:
    line = f"trap '' INT; exec '{sys.executable}' -m zpptool plan-ports --num-stages 2"
    code, out, _err = interrupt(["sh", "-c", line], signal.SIGINT, 0.05)
    assert code == ExitCode.OK
    assert "15550" in out


def test_an_interrupt_while_python_runs_a_string_has_the_same_exit_code(tmp_path: Path) -> None:
    """As while a data class is made: CPython would end `python -m` by SIGINT, although the interrupt is handled."""
    (tmp_path / "interrupted_here.py").write_text(
        "from zpptool.cli import app\ndef run(*_):\n    exec('raise KeyboardInterrupt')\napp._run = run\napp.main()\n"
    )
    words = [sys.executable, "-m", "interrupted_here"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (ExitCode.INTERRUPTED, "interrupted")
