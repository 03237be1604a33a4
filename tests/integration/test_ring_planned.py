# SPDX-License-Identifier: Apache-2.0
"""Stages that are asked to leave do so between two calls and are admitted again; that counts as no loss."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_ring_recovery import surviving, trace
from toys import Processes

from zpptool.admin.change_server import ChangeServer
from zpptool.admin.change_types import Outcome, Rollout, ask
from zpptool.errors import ExitCode
from zpptool.ring.head.recoveries import MOST_IN_A_ROW
from zpptool.ring.messages import Leave

pytestmark = pytest.mark.timeout(120)


def restart_those_that_leave(ring: Processes, rounds: int) -> list[int]:
    """Restart each stage that leaves, so many times in all; the exit codes."""
    codes: list[int] = []
    while len(codes) < rounds:
        for stage, child in enumerate(ring.children):
            if child.poll() is not None:
                codes.append(child.returncode)
                ring.restart(stage)
        time.sleep(0.02)
    return codes


def test_a_rollout_of_processes_under_load(tmp_path: Path) -> None:
    with surviving(tmp_path) as ring, ThreadPoolExecutor(6) as pool, ThreadPoolExecutor(1) as keeper:
        server = ChangeServer(tmp_path / "head.change", ring.head)
        before = [child.pid for child in ring.children]
        asked = [pool.submit(ring.ask_until_answered, "step", str(number).encode()) for number in range(300)]
        codes = keeper.submit(restart_those_that_leave, ring, 3)
        *answers, outcome = ask(tmp_path / "head.change", Rollout("the test"))
        server.close()
        assert outcome == Outcome("every stage has come again")
        assert codes.result(30) == [ExitCode.AGAIN] * 3
        for number, answer in enumerate(asked):
            assert answer.result(30) == trace(number)
        assert not set(before) & {child.pid for child in ring.children}
        assert [one.stage for one in answers if one.stage is not None] == [0, 1, 2]
        assert ring.ask_until_answered("learnt", from_all=True) == [b"this that"] * 3
        status = ring.head.status()
        assert (status.planned, status.recoveries) == (3, 0)
        assert status.stall_s > 0


def test_stages_of_an_idle_ring_may_leave_any_number_of_times(tmp_path: Path) -> None:
    """As many losses with nothing computed in between would be a crash loop."""
    with surviving(tmp_path, 2) as ring, ThreadPoolExecutor(1) as pool:
        codes = pool.submit(restart_those_that_leave, ring, MOST_IN_A_ROW + 2)
        for turn in range(MOST_IN_A_ROW + 2):
            leaving = ring.head.look().seats[turn % 2]
            ring.head.ask_to_leave(Leave((leaving,), "the test"))
            while ring.head.look().seats[turn % 2] == leaving or ring.head.whole is None:
                time.sleep(0.02)
        assert codes.result(30) == [ExitCode.AGAIN] * (MOST_IN_A_ROW + 2)
        assert ring.ask_until_answered("step", b"1") == trace(1, 2)
        assert ring.head.status().recoveries == 0


def test_a_request_for_a_process_that_has_ended_does_not_affect_its_successor(tmp_path: Path) -> None:
    with surviving(tmp_path, 2) as ring:
        (old, _) = ring.head.look().seats
        ring.kill(0)
        ring.restart(0)
        assert ring.ask_until_answered("step", b"1") == trace(1, 2)
        ring.head.ask_to_leave(Leave((old,), "the test"))
        assert ring.ask_until_answered("step", b"2") == trace(2, 2)
        assert [child.poll() for child in ring.children] == [None, None]


def test_a_loss_after_a_planned_change_is_counted_as_a_loss(tmp_path: Path) -> None:
    with surviving(tmp_path, 2) as ring:
        ring.head.ask_to_leave(Leave(ring.head.look().seats[:1], "the test"))
        assert ring.children[0].wait(10) == ExitCode.AGAIN
        ring.restart(0)
        assert ring.ask_until_answered("step", b"1") == trace(1, 2)
        ring.kill(1)
        ring.restart(1)
        assert ring.ask_until_answered("step", b"2") == trace(2, 2)
        status = ring.head.status()
        assert (status.planned, status.recoveries) == (1, 1)
