# SPDX-License-Identifier: Apache-2.0
"""Which processes are restarted, and when."""

from __future__ import annotations

import signal

import pytest

from zpptool.errors import ExitCode
from zpptool.supervisor.restart_policy import BACKOFF, RestartPolicy

KILLED = -int(signal.SIGKILL)
RESTARTED = (ExitCode.FAILURE, ExitCode.AGAIN)


@pytest.mark.parametrize("code", [*(code for code in ExitCode if code not in RESTARTED), 128 + signal.SIGTERM])
def test_an_end_by_decision_is_final(code: int) -> None:
    assert RestartPolicy().delay_s("stage 1", code, became_ready=True) is None


@pytest.mark.parametrize("code", [KILLED, -int(signal.SIGSEGV), int(ExitCode.FAILURE)])
def test_a_process_that_became_ready_is_restarted_at_once_every_time(code: int) -> None:
    policy = RestartPolicy()
    assert [policy.delay_s("stage 1", code, became_ready=True) for _ in range(100)] == [0.0] * 100


def test_failures_in_a_row_are_delayed_ever_longer_and_the_fifth_is_final() -> None:
    policy = RestartPolicy()
    delays = [policy.delay_s("stage 1", KILLED, became_ready=False) for _ in range(BACKOFF.max_failures)]
    assert delays == [0.0, 1.0, 2.0, 4.0, None]
    assert policy.delay_s("head", KILLED, became_ready=False) == 0.0


def test_a_process_that_was_asked_to_leave_is_restarted_at_once_and_has_not_failed() -> None:
    policy = RestartPolicy()
    for _ in range(100):
        assert policy.delay_s("stage 1", ExitCode.AGAIN, became_ready=False) == 0.0
    assert policy.delay_s("stage 1", KILLED, became_ready=False) == 0.0


def test_failures_before_a_process_became_ready_do_not_count() -> None:
    policy = RestartPolicy()
    for became_ready in (False, False, False, True):
        policy.delay_s("stage 1", KILLED, became_ready=became_ready)
    assert policy.delay_s("stage 1", KILLED, became_ready=False) == 0.0
