# SPDX-License-Identifier: Apache-2.0
"""Real child processes: the one to blame is found, and nothing that a group has started keeps running after it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from zpptool.errors import ExitCode
from zpptool.process import group as process_group
from zpptool.process.group import Child, ProcessGroup, is_final_error

pytestmark = pytest.mark.timeout(20)

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); " + SLEEP
PARENT = (
    "import subprocess, sys, signal\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', {grandchild!r}], stdout=sys.stdout)\n"
    "{then}\n"
)


@pytest.fixture
def group() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


@pytest.fixture
def start(group: ProcessGroup, tmp_path: Path) -> Callable[..., Child]:
    def start(script: str, name: str = "stage 0", log: str | None = "child.log", **env: str) -> Child:
        return group.start(name, [sys.executable, "-c", script], env, tmp_path / log if log else None)

    return start


def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_how_a_child_ended_as_text(start: Callable[..., Child]) -> None:
    running, failing = start(SLEEP), start("raise SystemExit(3)")
    killed, real_time = start("import os; os.kill(os.getpid(), 9)"), start("import os; os.kill(os.getpid(), 40)")
    assert running.how_it_ended() == "is running"
    until(lambda: failing.ended and killed.ended and real_time.ended)
    assert failing.how_it_ended() == "exited with code 3"
    assert killed.how_it_ended() == "was killed by SIGKILL"
    assert real_time.how_it_ended() == "was killed by signal 40"


def test_the_end_of_a_log_is_its_last_lines(start: Callable[..., Child]) -> None:
    child = start("for line in range(30000): print('line', line)")
    until(lambda: child.ended)
    assert child.tail(2).splitlines() == ["line 29998", "line 29999"]
    assert len(child.tail().splitlines()) == 20


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_final_error_of_a_child_is_shown_whatever_libraries_write_after_it(
    start: Callable[..., Child], form: str
) -> None:
    """The child is a real `run_child`, in either log format."""
    script = (
        "import atexit\n"
        "from zpptool.errors import stage_error\n"
        "from zpptool.process.child import run_child\n"
        "def body():\n    raise stage_error('no', 'yes')\n"
        "atexit.register(lambda: [print('leaked', n) for n in range({count})])\n"
        "run_child('stage 0', body)\n"
    )
    for count in (100, 5):
        child = start(script.format(count=count), ZPP_LOG_FORMAT=form)
        until(lambda child=child: child.ended)
        lines = child.tail().splitlines()
        (number,) = (number for number, line in enumerate(lines) if is_final_error("stage 0", line))
        if form == "text":
            assert lines[number : number + 2] == ["error: stage 0: no", "  hint: yes"]
        else:
            entry = json.loads(lines[number])
            assert (entry["message"], entry["hint"]) == ("no", "yes")
        assert (lines[-1] == "leaked 4") == (count == 5)
        assert len(lines) <= 20


@pytest.mark.parametrize(
    ("line", "final"),
    [
        ("error: stage 0: no", True),
        ("error: stage 1: no", False),
        ("zpptool stage 0: error: lost a message", False),
        ('{"level": "error", "stage": "stage 0", "message": "no", "exit_code": 6}', True),
        ('{"level": "error", "stage": "stage 0", "message": "no"}', False),
        ('{"level": "error", "stage": "stage 1", "message": "no", "exit_code": 6}', False),
        ('{"level": "info", "stage": "stage 0", "message": "no", "exit_code": 6}', False),
        ('{"level": ', False),
        ("{}", False),
    ],
)
def test_which_line_is_the_final_error(line: str, final: bool) -> None:
    assert is_final_error("stage 0", line) is final


def test_a_log_that_is_not_text_is_shown_as_far_as_it_goes(start: Callable[..., Child]) -> None:
    child = start("import sys; sys.stdout.buffer.write(b'good \\xff\\n')")
    until(lambda: child.ended)
    assert child.tail() == "good \N{REPLACEMENT CHARACTER}"


def test_a_child_without_a_log_has_no_tail(group: ProcessGroup) -> None:
    child = group.start("stage 0", [sys.executable, "-c", "pass"], {})
    assert child.tail() == ""


def test_a_log_is_overwritten(start: Callable[..., Child]) -> None:
    for word in ("first", "second"):
        child = start(f"print({word!r})")
        until(lambda child=child: child.ended)
        assert child.tail() == word


def test_a_child_gets_this_environment_and_its_own(
    start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZPP_OF_PARENT", "here")
    child = start("import os; print(os.environ['ZPP_OF_PARENT'], os.environ['ZPP_OWN'])", ZPP_OWN="mine")
    until(lambda: child.ended)
    assert child.tail() == "here mine"


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_children(start: Callable[..., Child]) -> None:
    child = start(SLEEP)
    assert os.getsid(child.popen.pid) == os.getpgid(child.popen.pid) == child.popen.pid


def ending(code: int) -> str:
    return f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"


@pytest.mark.parametrize(
    ("ends", "culprit"),
    [
        ({"stage 0": "6", "stage 1": "-9", "stage 2": "6"}, "stage 1"),
        ({"stage 0": "6", "head": "6", "stage 1": "3"}, "stage 1"),
        ({"stage 0": "0", "head": "6", "stage 1": "6"}, "head"),
        ({"stage 0": "0", "stage 1": "0", "stage 2": "1"}, "stage 2"),
        ({"stage 0": "0", "head": "0"}, "head"),
    ],
)
def test_the_process_with_a_reason_of_its_own_is_named_as_the_cause(
    start: Callable[..., Child], group: ProcessGroup, ends: dict[str, str], culprit: str
) -> None:
    for name, code in ends.items():
        start(ending(int(code)), name)
    assert group.wait_for_end().name == culprit


def test_the_cause_may_end_after_the_processes_that_noticed(start: Callable[..., Child], group: ProcessGroup) -> None:
    start(f"raise SystemExit({int(ExitCode.STAGE)})", "stage 0")
    until(group.any_ended)
    start("import time; time.sleep(0.5); raise SystemExit(3)", "stage 1")
    assert group.culprit().name == "stage 1"


def test_a_child_that_keeps_running_is_not_waited_for_without_end(
    start: Callable[..., Child], group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "SETTLE_S", 0.5)
    start(SLEEP, "stage 0")
    start("raise SystemExit(6)", "stage 1")
    began = time.monotonic()
    assert group.wait_for_end().name == "stage 1"
    assert time.monotonic() - began < 2


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(
    start: Callable[..., Child], group: ProcessGroup
) -> None:
    stubborn, obeying = start(STUBBORN, log="stubborn.log"), start(SLEEP, log="obeying.log")
    until(lambda: "stubborn" in stubborn.tail())
    began = time.monotonic()
    group.stop(grace_s=1.0)
    assert 0.5 <= time.monotonic() - began < 2
    assert stubborn.how_it_ended() == "was killed by SIGKILL"
    assert obeying.how_it_ended() == "was killed by SIGTERM"


@pytest.mark.parametrize("then", ["grandchild.wait()", "pass"], ids=["parent runs", "parent has ended"])
def test_what_a_child_has_started_ends_with_it(start: Callable[..., Child], group: ProcessGroup, then: str) -> None:
    grandchild = "import os; print(os.getpid(), flush=True); " + STUBBORN
    child = start(PARENT.format(grandchild=grandchild, then=then))
    until(lambda: "stubborn" in child.tail())
    pid = int(child.tail().split()[0])
    assert not is_gone(pid)
    group.stop(grace_s=0.2)
    until(lambda: is_gone(pid), within_s=1)


def test_the_head_ends_first_since_it_informs_the_stages(
    start: Callable[..., Child], group: ProcessGroup, tmp_path: Path
) -> None:
    prefix = "import pathlib, sys, time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\nfinally:\n    "
    prefix = "from zpptool.process.child import end_on_sigterm\nend_on_sigterm()\n" + prefix
    stage = start(f"{prefix}print('head', pathlib.Path({str(tmp_path / 'head')!r}).exists())", "stage 0", "stage.log")
    head = start(f"{prefix}time.sleep(0.3); pathlib.Path({str(tmp_path / 'head')!r}).touch()", "head", "head.log")
    until(lambda: "ready" in stage.tail() and "ready" in head.tail())
    group.stop()
    assert stage.tail() == "ready\nhead True"


def test_a_second_ctrl_c_ends_all_at_once(start: Callable[..., Child], group: ProcessGroup) -> None:
    stubborn = start(STUBBORN)
    until(lambda: "stubborn" in stubborn.tail())
    second = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    second.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        group.stop(grace_s=15)
    assert time.monotonic() - began < 3
    assert stubborn.how_it_ended() == "was killed by SIGKILL"


def test_an_exception_in_the_block_ends_the_children(tmp_path: Path) -> None:
    group = ProcessGroup()
    child = group.start("stage 0", [sys.executable, "-c", SLEEP], {}, tmp_path / "log")
    with pytest.raises(ZeroDivisionError), group:
        1 / 0  # noqa: B018
    assert child.how_it_ended() == "was killed by SIGTERM"
    group.stop()  # a second call does nothing
