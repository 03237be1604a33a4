# SPDX-License-Identifier: Apache-2.0
"""Real spare processes of an engine that is imported in no time: assigned, replaced, and ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.process.group import STARTER, ProcessGroup
from zpptool.supervisor.standby.policy import BACKOFF, STABLE_S
from zpptool.supervisor.standby.spare_pool import SparePool

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
SPEC = StageSpec(Engine.TRANSFORMERS, "/no/model", ((0, 2), (2, 4)), 1, "ipc:///b", "ipc:///c")
ENV = {"PYTHONUNBUFFERED": "1", "ZPP_EARLY": "1"}
ASSIGNED = (
    "import os, sys\n"
    "shown = os.environ['CUDA_VISIBLE_DEVICES'], os.environ['ZPP_EARLY'], os.getpid()\n"
    "print(__name__, sys.argv[1:], *shown, flush=True)\n"
    "import time; time.sleep(60)\n"
)
PARENT = (
    "import sys, time\n"
    "from tests.unit.test_supervisor_spare_pool import SPEC, ENV, Fixture\n"
    "one = Fixture(1)\n"
    "one.until_ready()\n"
    "print(*one.pids(), flush=True)\n"
    "time.sleep(60)\n"
)


class Fixture:
    """A group with spares, whose clock is ahead so that tests need not wait until it is stable."""

    def __init__(self, count: int, log_dir: Path | None = None) -> None:
        self.ahead = 0.0
        self.log_dir = log_dir
        self.pool = SparePool(count, "pipeline", lambda: time.monotonic() + self.ahead)
        self.group = ProcessGroup(self.pool)

    def maintain(self, *, stable: bool = True) -> None:
        self.pool.maintain((SPEC,), ENV, stable=stable, log_dir=self.log_dir)

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 50
        while not true():
            assert time.monotonic() < deadline, "it did not become true in time"
            self.maintain()
            self.ahead += STABLE_S
            time.sleep(0.02)

    def until_ready(self, count: int = 1) -> None:
        self.until(lambda: self.pool.ready == count)

    def pids(self) -> list[int]:
        return [spare.popen.pid for spare in self.pool._spares]


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the processes that are started, the engine and the assigned module are small modules."""
    package = tmp_path / "code"
    package.mkdir()
    (package / "assigned.py").write_text(ASSIGNED)
    (package / "sitecustomize.py").write_text(
        "import sys, types\n"
        "for name in ('worker', 'head', 'preload'):\n"
        "    module = types.ModuleType(f'zpptool.engines.transformers.{name}')\n"
        "    module.preload = lambda spec: print('preloaded', spec.stage, flush=True)\n"
        "    sys.modules[module.__name__] = module\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{package}:{ROOT}")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], Fixture]]:
    made = []

    def one(count: int) -> Fixture:
        made.append(Fixture(count, tmp_path))
        return made[-1]

    yield one
    for each in made:
        each.group.stop()


def start(one: Fixture, log: Path, early: str = "1") -> psutil.Process:
    env = {**ENV, "ZPP_EARLY": early, "CUDA_VISIBLE_DEVICES": "7"}
    child = one.group.start("stage 1", [*STARTER, "assigned", "the spec"], env, log)
    deadline = time.monotonic() + 30
    while "the spec" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return psutil.Process(child.popen.pid)


def test_a_spare_runs_its_assignment_as_if_it_was_started_for_it(
    make: Callable[..., Fixture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zpptool")
    one, log = make(1), tmp_path / "stage-1.log"
    one.until_ready()
    (spare,) = one.pids()
    assert start(one, log).pid == spare
    assert log.read_text() == f"__main__ ['the spec'] 7 1 {spare}\n"
    assert (tmp_path / "spare.log").read_text() == "preloaded 1\n"
    assert [child.popen.pid for child in one.group.children] == [spare]
    assert one.pool.ready == 0
    assert caplog.messages == [
        f"pipeline: a spare process is ready (pid {spare})", f"pipeline: a spare process becomes stage 1 (pid {spare})"
    ]  # fmt: skip
    one.until_ready()
    assert one.pids() != [spare]


def test_a_process_is_started_where_no_spare_is_ready_or_fits(make: Callable[..., Fixture], tmp_path: Path) -> None:
    one = make(1)
    one.until(one.pids)
    (spare,) = one.pids()
    assert start(one, tmp_path / "one.log").pid != spare
    one.until_ready()
    assert start(one, tmp_path / "two.log", early="2").pid != spare
    assert one.pids() == [spare]


def test_a_spare_that_has_stopped_is_not_waited_for(make: Callable[..., Fixture], tmp_path: Path) -> None:
    one = make(1)
    one.until_ready()
    (spare,) = one.pids()
    os.kill(spare, signal.SIGSTOP)
    assert start(one, tmp_path / "one.log").pid != spare
    assert not psutil.pid_exists(spare)


def test_a_spare_that_ends_is_no_loss_and_is_replaced(make: Callable[..., Fixture]) -> None:
    one = make(2)
    one.until_ready(2)
    first = one.pids()
    os.kill(first[0], signal.SIGKILL)
    one.until(lambda: one.pool.ready == 2 and first[0] not in one.pids())
    assert first[1] in one.pids()
    assert not one.group.any_ended()


def test_none_is_started_while_the_pipeline_is_not_whole(make: Callable[..., Fixture]) -> None:
    one = make(1)
    one.ahead += 10 * STABLE_S
    one.maintain(stable=False)
    one.ahead += 10 * STABLE_S
    one.maintain(stable=False)
    assert one.pids() == []


def test_a_spare_that_cannot_be_started_is_logged_and_retried(
    make: Callable[..., Fixture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = make(1)
    one.log_dir = tmp_path / "not" / "there"
    one.until(lambda: caplog.messages)
    assert caplog.messages[0].startswith("pipeline: no spare process can be started: ")
    one.log_dir = tmp_path
    one.until_ready()


def test_spares_whose_imports_fail_are_given_up_after_five(
    make: Callable[..., Fixture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "code" / "sitecustomize.py").unlink()
    (tmp_path / "code" / "torch.py").write_text("raise ImportError('no torch here')\n")
    one = make(1)
    one.until(lambda: caplog.messages)
    log = tmp_path / "spare.log"
    assert caplog.messages == [f"pipeline: spare processes end again and again: no more are started (see {log})"]
    assert log.read_text().count("ImportError: no torch here") == BACKOFF.max_failures == 5


def test_they_end_with_the_group(make: Callable[..., Fixture]) -> None:
    one = make(1)
    one.until_ready()
    spares = [psutil.Process(pid) for pid in one.pids()]
    one.group.stop()
    assert psutil.wait_procs(spares, timeout=5)[1] == []


def test_they_do_not_outlive_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        spare = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert psutil.wait_procs([spare], timeout=30)[1] == []
