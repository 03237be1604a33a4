# SPDX-License-Identifier: Apache-2.0
"""What every child process does: end with its parent, clean up on SIGTERM, and log the error that ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(20)

CHILD = "import os, sys, time\nfrom zpptool.process import child\n"
LIVE = "print(os.getpid(), flush=True)\ntime.sleep(60)\n"


def until(true: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(script: str, *, signal_when_ready: list[int] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; once it has printed a line, send it these signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **env},
    )  # fmt: skip
    assert process.stdout is not None
    ready = process.stdout.readline() if signal_when_ready else ""
    for number in signal_when_ready or ():
        process.send_signal(number)
        time.sleep(0.1)
    out, err = process.communicate(timeout=15)
    return subprocess.CompletedProcess(process.args, process.returncode, ready + out, err)


def orphan(child: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A parent that starts this script as a group does, and the pid that the child has printed."""
    argv = [sys.executable, "-c", CHILD + child]
    parent = (
        "import time\nfrom pathlib import Path\nfrom zpptool.process.group import ProcessGroup\n"
        f"ProcessGroup().start('child', {argv!r}, {{}}, Path({str(log)!r}))\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    until(lambda: log.exists() and log.read_text().endswith("\n"), 10)
    return process, int(log.read_text().split()[0])


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent, pid = orphan("child.die_with_parent()\n" + LIVE, tmp_path / "log")
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    until(lambda: is_gone(pid), 2)


def test_a_child_whose_parent_died_while_it_was_starting_dies_too(tmp_path: Path) -> None:
    """An engine takes many seconds to import; only then the child begins to watch its parent."""
    slow = "print(os.getpid(), flush=True)\ntime.sleep(0.7)\nchild.die_with_parent()\ntime.sleep(60)\n"
    parent, pid = orphan(slow, tmp_path / "log")
    parent.kill()
    parent.wait()
    until(lambda: is_gone(pid), 2.7)


def test_the_child_of_a_child_watches_its_own_parent(tmp_path: Path) -> None:
    """The parent to watch is passed to a child, and not to what the child starts."""
    grandchild = CHILD + "child.die_with_parent()\ntime.sleep(1)\nprint('still here', flush=True)\n"
    child = (
        "import subprocess\nprint(os.getpid(), flush=True)\nchild.die_with_parent()\n"
        f"print(subprocess.run([sys.executable, '-c', {grandchild!r}], capture_output=True, text=True))\n"
    )
    log = tmp_path / "log"
    parent, _pid = orphan(child, log)
    try:
        until(lambda: "still here" in log.read_text(), 10)
    finally:
        parent.kill()
        parent.wait()


def test_a_child_that_ignores_sigterm_dies_with_its_parent_too(tmp_path: Path) -> None:
    ignoring = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild.EXIT_GRACE_S = 0.3\n"
        "child.die_with_parent()\n" + LIVE
    )
    parent, pid = orphan(ignoring, tmp_path / "log")
    parent.kill()
    parent.wait()
    until(lambda: is_gone(pid), 2)


CLEANUP = (
    "try:\n    print('ready', flush=True)\n    time.sleep(30)\n"
    "finally:\n    {cleanup}\n    print('cleaned', flush=True)\n"
)


def test_sigterm_lets_a_process_clean_up() -> None:
    ran = run("child.end_on_sigterm()\n" + CLEANUP.format(cleanup="pass"), signal_when_ready=[signal.SIGTERM])
    assert ran.returncode == 128 + signal.SIGTERM
    assert ran.stdout == "ready\ncleaned\n"
    assert ran.stderr == ""


def test_a_second_sigterm_does_not_disturb_the_cleanup() -> None:
    script = "child.end_on_sigterm()\n" + CLEANUP.format(cleanup="time.sleep(0.5)")
    ran = run(script, signal_when_ready=[signal.SIGTERM, signal.SIGTERM])
    assert ran.returncode == 128 + signal.SIGTERM
    assert ran.stdout == "ready\ncleaned\n"


def test_a_cleanup_that_hangs_is_ended_by_force() -> None:
    script = "child.EXIT_GRACE_S = 0.3\nchild.end_on_sigterm()\n" + CLEANUP.format(cleanup="time.sleep(30)")
    began = time.monotonic()
    ran = run(script, signal_when_ready=[signal.SIGTERM])
    assert ran.returncode == 128 + signal.SIGTERM
    assert "cleaned" not in ran.stdout
    assert "still busy 0.3 s after it was to end: ended by force" in ran.stderr
    assert time.monotonic() - began < 5


FAIL = "from zpptool import errors\ndef fail(error):\n    def body():\n        raise error\n    return body\n"


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ("lambda: None", 0, ""),
        ("lambda: sys.exit(5)", 5, ""),
        ("fail(errors.stage_error('it broke', 'Mend it.'))", 6, "error: stage 7: it broke\n  hint: Mend it.\n"),
        ("fail(errors.invalid_error('it cannot be'))", 3, "error: stage 7: it cannot be\n"),
        ("fail(KeyboardInterrupt())", 130, ""),
    ],
)
def test_a_child_ends_with_one_readable_error(body: str, code: int, shown: str) -> None:
    ran = run(f"{FAIL}child.run_child('stage 7', {body})\n")
    assert (ran.returncode, ran.stderr) == (code, shown)


def test_the_error_is_one_json_object_where_the_log_is_json() -> None:
    ran = run(
        f"{FAIL}child.run_child('stage 7', fail(errors.stage_error('it broke', 'Mend it.')))\n", ZPP_LOG_FORMAT="json"
    )
    entry = json.loads(ran.stderr)
    assert entry.pop("time")
    assert entry == {
        "level": "error", "logger": "zpptool.process.child", "stage": "stage 7", "hint": "Mend it.", "exit_code": 6,
        "message": "it broke",
    }  # fmt: skip


def test_an_unexpected_exception_is_one_json_object_with_its_traceback() -> None:
    ran = run("child.run_child('stage 7', lambda: 1 / 0)\n", ZPP_LOG_FORMAT="json")
    assert ran.returncode == 1
    entry = json.loads(ran.stderr)
    assert (entry["level"], entry["stage"], entry["exit_code"]) == ("critical", "stage 7", 1)
    assert "ZeroDivisionError" in entry["traceback"]


def test_an_unknown_log_format_is_refused_in_the_log() -> None:
    ran = run("child.run_child('stage 7', lambda: None)\n", ZPP_LOG_FORMAT="xml")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: stage 7: ZPP_LOG_FORMAT is 'xml'\n  hint: Set it to one of: ")


def test_an_unexpected_exception_is_shown_with_its_traceback() -> None:
    ran = run("child.run_child('stage 7', lambda: 1 / 0)\n")
    assert ran.returncode == 1
    assert ran.stderr.startswith("critical: stage 7: ended by an unexpected error\nTraceback ")
    assert "ZeroDivisionError" in ran.stderr
    assert str(os.getpid()) not in ran.stderr
