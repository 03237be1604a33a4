# SPDX-License-Identifier: Apache-2.0
"""Which processes are started again, and when; and that they are, alone."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from zpptool.errors import ExitCode
from zpptool.process.group import ProcessGroup
from zpptool.process.progress import LOADED
from zpptool.supervisor.restart_policy import LONGEST_REST_S, MOST_IN_A_ROW, RestartPolicy
from zpptool.supervisor.restarter import Restarter

KILLED = -int(signal.SIGKILL)


STARTED_AGAIN = (ExitCode.FAILURE, ExitCode.AGAIN)


@pytest.mark.parametrize("code", [*(code for code in ExitCode if code not in STARTED_AGAIN), 128 + signal.SIGTERM])
def test_an_end_by_decision_is_final(code: int) -> None:
    assert RestartPolicy().rest_s("stage 1", code, stood=True) is None


@pytest.mark.parametrize("code", [KILLED, -int(signal.SIGSEGV), int(ExitCode.FAILURE)])
def test_a_crash_of_one_that_stood_is_made_good_at_once_every_time(code: int) -> None:
    lives = RestartPolicy()
    assert [lives.rest_s("stage 1", code, stood=True) for _ in range(100)] == [0.0] * 100


def test_lives_in_vain_rest_longer_and_longer_and_then_end() -> None:
    lives = RestartPolicy()
    rests = [lives.rest_s("stage 1", KILLED, stood=False) for _ in range(MOST_IN_A_ROW + 1)]
    assert rests == [0.0, 1.0, 2.0, 4.0, 8.0, None]
    assert all(rest is None or rest <= LONGEST_REST_S for rest in rests)
    assert lives.rest_s("head", KILLED, stood=False) == 0.0


def test_one_that_was_asked_to_leave_comes_again_at_once_and_has_not_failed() -> None:
    lives = RestartPolicy()
    for _ in range(100):
        assert lives.rest_s("stage 1", ExitCode.AGAIN, stood=False) == 0.0
    assert lives.rest_s("stage 1", KILLED, stood=False) == 0.0


def test_one_good_life_forgets_those_in_vain() -> None:
    lives = RestartPolicy()
    for stood in (False, False, False, True):
        lives.rest_s("stage 1", KILLED, stood=stood)
    assert lives.rest_s("stage 1", KILLED, stood=False) == 0.0


@pytest.mark.timeout(60)
def test_only_the_process_that_was_killed_is_started_again_and_its_log_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    with ProcessGroup() as group:
        for name in ("stage 0", "head"):
            words = [sys.executable, "-uc", "print('up'); import time; time.sleep(60)"]
            group.start(name, words, {}, tmp_path / f"{name}.log")
        other, killed = (child.popen.pid for child in group.children)
        revival = Restarter(group, tmp_path, told.append)
        assert not revival.look()
        group.children[1].popen.kill()
        end = time.monotonic() + 20
        while {child.popen.pid for child in group.children} == {other, killed}:
            assert not revival.look()
            assert time.monotonic() < end
            time.sleep(0.02)
        assert other in {child.popen.pid for child in group.children}
        assert told == ["head was killed by SIGKILL; it is started again"]
        while (tmp_path / "head.log").read_text() not in ("up\nup\n", "up\n"):
            assert time.monotonic() < end
        group.children[0].popen.terminate()
        group.children[0].popen.wait()


@pytest.mark.timeout(60)
def test_all_stand_when_each_has_said_so_and_none_has_ended(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        for name in ("stage 0", "head"):
            group.start(name, [sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / f"{name}.log")
        revival = Restarter(group, tmp_path, [].append)
        (tmp_path / "stage-0").write_text(LOADED)
        assert not revival.all_stand()
        (tmp_path / "head").write_text(LOADED)
        assert revival.all_stand()
        group.children[1].popen.kill()
        group.children[1].popen.wait()
        assert not revival.all_stand()
