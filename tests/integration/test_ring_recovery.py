# SPDX-License-Identifier: Apache-2.0
"""Stages as processes that are killed, stopped and restarted: calls go on, and no process is set up twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from toys import Processes, changed, processes, ring_specs, start_process

from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link import StaleEpoch

pytestmark = pytest.mark.timeout(60)


@contextmanager
def surviving(tmp_path: Path, num_stages: int = 3, **fields: float) -> Iterator[Processes]:
    """A ring that survives losses, and has learnt two things."""
    specs = ring_specs(num_stages, tmp_path, start_s=30.0, recovery_s=30.0)
    with processes([changed(spec, **fields) for spec in specs], tmp_path) as ring:
        ring.head.set_up("learn", b"this", timeout_s=10).result(10)
        ring.head.set_up("learn", b"that", timeout_s=10).result(10)
        yield ring
        assert ring.faults == []


def trace(number: int, num_stages: int = 3) -> list[bytes]:
    return [b" ".join(str(word).encode() for word in (number, *range(num_stages)))]


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_stages_that_are_killed_and_restarted_under_load(tmp_path: Path, lost: tuple[int, ...]) -> None:
    with surviving(tmp_path) as ring, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ring.ask_until_answered, "step", str(number).encode()) for number in range(400)]
        time.sleep(0.1)
        began = time.monotonic()
        ring.kill(*lost)
        while ring.head.whole is not None:
            time.sleep(0.005)
        assert time.monotonic() - began < 1.0, "it was not noticed within a second"
        ring.restart(*lost)
        for number, answer in enumerate(asked):
            assert answer.result(30) == trace(number)
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that"] * 3
        status = ring.head.status()
        assert (status.epoch, status.recoveries) == (2, 1)
        assert status.stall_s > 0


def test_a_stage_that_survives_does_not_repeat_its_set_up(tmp_path: Path) -> None:
    with surviving(tmp_path) as ring:
        before = ring.head.set_up("learn", b"more", timeout_s=10).result(10)
        for stage in (0, 1, 2):
            ring.kill(stage)
            ring.restart(stage)
            ring.ask_until_answered("where")
        after = ring.head.set_up("learn", b"last", timeout_s=10).result(10)
        assert not set(before) & set(after), "the stages are the same processes"
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that more last"] * 3


def test_one_loss_after_the_other_even_while_recovering(tmp_path: Path) -> None:
    with surviving(tmp_path, 4) as ring, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ring.ask_until_answered, "step", str(number).encode()) for number in range(300)]
        for stage in (1, 3, 0, 2, 1):
            ring.kill(stage)
            ring.restart(stage)
            time.sleep(0.4)  # about as long as a process takes to start: some are back before the next is killed
        for number, answer in enumerate(asked):
            assert answer.result(40) == trace(number, 4)
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that"] * 4


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_that_is_lost_while_it_is_set_up(tmp_path: Path, stage: int) -> None:
    with surviving(tmp_path) as ring:
        slow = ring.head.set_up("slow learn", b"0.5", timeout_s=10)
        time.sleep(0.2)
        ring.kill(stage)
        ring.restart(stage)
        assert slow.result(30) == [b""] * 3
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that 0.5"] * 3


def test_a_stage_that_is_lost_before_the_ring_was_ever_whole(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, start_s=30.0, recovery_s=30.0)
    ring = Processes(specs, tmp_path)
    try:
        ring.start()
        with ThreadPoolExecutor(1) as pool:
            gathering = pool.submit(ring.gather)
            for stage in (0, 1, 2):
                time.sleep(0.25)
                ring.kill(stage)
                ring.restart(stage)
            gathering.result(30)
        assert ring.ask_until_answered("step", b"1") == trace(1)
    finally:
        ring.close()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_that_is_stopped_is_left_behind_and_joins_again(tmp_path: Path, stage: int) -> None:
    with surviving(tmp_path, beat_timeout_s=1.5) as ring:
        ring.ask_until_answered("step", b"1")
        time.sleep(1.2)  # every stage has reported its status
        ring.children[stage].send_signal(signal.SIGSTOP)
        waiting = ring.head.call("step", b"2", from_all=False)
        assert isinstance(waiting.exception(10), StaleEpoch)
        assert ring.head.whole is None
        ring.children[stage].send_signal(signal.SIGCONT)
        assert ring.ask_until_answered("step", b"3") == trace(3)
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that"] * 3


def test_a_main_loop_that_is_stuck_ends_its_stage_once_the_ring_has_left_it_behind(tmp_path: Path) -> None:
    with surviving(tmp_path, beat_timeout_s=1.5) as ring:
        ring.ask_until_answered("step", b"1")
        time.sleep(1.2)
        stuck = ring.head.call("sleep", b"1", from_all=True)
        assert isinstance(stuck.exception(10), StaleEpoch)
        assert ring.children[1].wait(10) == ExitCode.FAILURE
        assert "no progress for" in ring.log(1).read_text()
        ring.restart(1)
        assert ring.ask_until_answered("step", b"2") == trace(2)


def test_a_stage_that_does_not_come_back_in_time_is_named_and_every_process_ends(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, recovery_s=4)
    with processes(specs, tmp_path) as ring:
        ring.kill(1)
        assert ring.broken.wait(20)
        fault = ring.faults[0]
        assert fault.exit_code is ExitCode.STAGE
        assert "stage 1 has not come back in 4 s (--recovery-deadline)" in fault.message
        assert "has lost stage 1" in fault.message
        with pytest.raises(ZppError, match="stage 1 has not come back"):
            ring.head.wait_until_whole()
        ring.head.stop("the head gives up")
        assert ring.children[0].wait(20) == ExitCode.STAGE
        assert ring.children[2].wait(20) == ExitCode.STAGE  # no message reaches it: it ends at its own time limit
        assert "has waited" in ring.log(2).read_text()


def test_stages_keep_their_set_up_for_a_head_that_is_restarted(tmp_path: Path) -> None:
    specs = ring_specs(3, tmp_path, start_s=30.0, recovery_s=30.0)
    stages = [start_process("stage", spec, tmp_path / f"stage-{spec.stage}.log") for spec in specs]
    pids: list[str] = []
    try:
        for run in range(3):
            log = tmp_path / f"head-{run}.log"
            head = start_process("learning head", specs[0], log)
            end = time.monotonic() + 20
            while "learnt" not in log.read_text():
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            head.kill()
            head.wait()
            pids.append(log.read_text().splitlines()[-1])
        assert len(set(pids)) == 1
        assert pids[0].split() == ["learnt", *(str(stage.pid) for stage in stages)]
        assert [stage.poll() for stage in stages] == [None] * 3
    finally:
        for process in stages:
            process.kill()
            process.wait()
