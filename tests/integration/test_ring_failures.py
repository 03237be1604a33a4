# SPDX-License-Identifier: Apache-2.0
"""Stages as processes, killed at the worst moments: every other process ends in two seconds and names the lost one."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from toys import Processes, processes, ring_specs, start_process

from zpptool.errors import ExitCode, ZppError

pytestmark = pytest.mark.timeout(60)

SOON_S = 2.0


@contextmanager
def three(tmp_path: Path) -> Iterator[Processes]:
    """A ring of three processes, whose head answers a fault with a stop, as real heads do."""
    with processes(ring_specs(3, tmp_path), tmp_path) as ring:
        yield ring


def until(condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def lose(ring: Processes, stage: int) -> ZppError:
    """Kill a stage; the error at the head. Every process has ended in time, with the exit code of a lost stage."""
    began = time.monotonic()
    ring.children[stage].kill()
    assert ring.broken.wait(SOON_S)
    ring.head.stop("the head gives up")
    for child in ring.children:
        child.wait(max(began + SOON_S - time.monotonic(), 0.01))
    codes = [child.returncode for child in ring.children]
    assert codes == [-signal.SIGKILL if place == stage else ExitCode.STAGE for place in range(3)]
    return ring.faults[0]


def error_of(ring: Processes, stage: int) -> str:
    """The error that a stage ended with."""
    log = ring.log(stage).read_text()
    assert "Traceback" not in log, log
    return log[log.index("error: ") :]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_killed_while_all_are_idle(tmp_path: Path, stage: int) -> None:
    with three(tmp_path) as ring:
        assert ring.ask("step", b"1") == [b"1 0 1 2"]
        fault = lose(ring, stage)
        assert f"has lost stage {stage} at" in fault.message
        for other in {0, 1, 2} - {stage}:
            assert f"has lost stage {stage} at" in error_of(ring, other)


def test_a_stage_killed_while_the_head_waits_for_it(tmp_path: Path) -> None:
    with three(tmp_path) as ring:
        waiting = ring.head.call("sleep", b"1", from_all=True)
        time.sleep(0.3)
        assert not waiting.done()
        fault = lose(ring, 1)
        assert waiting.exception(0.5) is fault
        assert "has lost stage 1 at" in fault.message


def test_a_busy_stage_ends_too_when_the_run_is_over(tmp_path: Path) -> None:
    """Here after a grace period of a second; a stage that loads weights for minutes would occupy its machine."""
    with three(tmp_path) as ring:
        ring.head.call("sleep", b"1", from_all=True)
        time.sleep(0.3)
        ring.head.stop("that was all")
        assert ring.children[1].wait(SOON_S) == ExitCode.OK
        assert "still busy 1 s after it was to end: ended by force" in ring.log(1).read_text()
        assert [child.wait(SOON_S) for child in ring.children] == [ExitCode.OK] * 3


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_stage_killed_while_its_neighbour_sends_to_it(tmp_path: Path) -> None:
    with three(tmp_path) as ring, stopped(ring.children[1]):
        flooding = ring.head.call("flood", b"0", from_all=True)
        time.sleep(0.4)  # the queues of a link hold 64 messages of a MiB; the flood is of 400
        assert not flooding.done()
        fault = lose(ring, 1)
        assert "has lost stage 1 at" in fault.message
        assert "has lost stage 1 at" in error_of(ring, 0)


def ask_too_much(ring: Processes) -> Future[list[bytes]]:
    """Send so many calls that the queues are full and stage 0 waits while it relays; returns the answer to the last."""

    def ask() -> list[bytes]:
        calls = [ring.head.call("where", bytes(1 << 20), from_all=True) for _ in range(300)]
        return calls[-1].result(20)

    pool = ThreadPoolExecutor(1)
    answer = pool.submit(ask)
    pool.shutdown(wait=False)
    time.sleep(0.4)
    assert not answer.done()
    return answer


def test_a_stage_killed_while_its_neighbour_relays_to_it(tmp_path: Path) -> None:
    with three(tmp_path) as ring, stopped(ring.children[1]):
        asked = ask_too_much(ring)
        fault = lose(ring, 1)
        assert "has lost stage 1 at" in fault.message
        assert "has lost stage 1 at" in error_of(ring, 0)
        assert asked.exception(SOON_S) is fault


def test_a_stage_that_is_terminated_while_its_neighbour_does_not_read(tmp_path: Path) -> None:
    with three(tmp_path) as ring, stopped(ring.children[1]):
        asked = ask_too_much(ring)
        ring.children[0].terminate()
        assert ring.children[0].wait(4) == 128 + signal.SIGTERM
        assert "lost stage 0" in str(asked.exception(SOON_S))


def test_a_killed_head_ends_every_stage(tmp_path: Path) -> None:
    specs = ring_specs(2, tmp_path)
    head = start_process("head", specs[0], tmp_path / "head.log")
    stages = [start_process("stage", spec, tmp_path / f"stage-{spec.stage}.log") for spec in specs]
    try:
        until(lambda: "gathered" in (tmp_path / "head.log").read_text(), 10)
        head.kill()
        began = time.monotonic()
        codes = [stage.wait(SOON_S) for stage in stages]
        assert time.monotonic() - began < SOON_S
    finally:
        for process in (head, *stages):
            process.kill()
            process.wait()
    assert codes == [ExitCode.STAGE] * 2
    for stage in range(2):
        log = (tmp_path / f"stage-{stage}.log").read_text()
        assert f"stage {stage} has lost the head at" in log[log.index("error: ") :]


def test_a_stage_lost_before_the_verdict_is_noticed_at_once(tmp_path: Path) -> None:
    """Stage 2 has not connected yet; the roll call is lost with stage 1."""
    specs = ring_specs(3, tmp_path)
    head = start_process("head", specs[0], tmp_path / "head.log")
    stages = [start_process("stage", spec, tmp_path / f"stage-{spec.stage}.log") for spec in specs[:2]]
    try:
        until(lambda: "waiting for stage 2 to connect" in (tmp_path / "stage-1.log").read_text(), 10)
        stages[1].kill()
        began = time.monotonic()
        assert stages[0].wait(SOON_S) == ExitCode.STAGE
        assert head.wait(SOON_S) == ExitCode.STAGE
        assert time.monotonic() - began < SOON_S
    finally:
        for process in (head, *stages):
            process.kill()
            process.wait()
    assert "error: stage 0: stage 0 has lost stage 1 at" in (tmp_path / "stage-0.log").read_text()
    assert "error: head: stage 0 has lost stage 1 at" in (tmp_path / "head.log").read_text()


def test_a_stop_ends_every_process_in_order(tmp_path: Path) -> None:
    with three(tmp_path) as ring:
        ring.head.stop("that was all")
        assert [child.wait(SOON_S) for child in ring.children] == [ExitCode.OK] * 3
        for stage in range(3):
            assert ring.log(stage).read_text().endswith("the head has stopped the run: that was all\n")


def test_a_stage_that_is_terminated_ends_and_the_others_name_it(tmp_path: Path) -> None:
    with three(tmp_path) as ring:
        ring.children[1].terminate()
        assert ring.broken.wait(SOON_S)
        ring.head.stop("the head gives up")
        codes = [child.wait(SOON_S) for child in ring.children]
        assert codes == [ExitCode.STAGE, 128 + signal.SIGTERM, ExitCode.STAGE]
        assert "has lost stage 1 at" in ring.faults[0].message
