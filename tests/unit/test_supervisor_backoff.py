# SPDX-License-Identifier: Apache-2.0
"""The one backoff: N failures in a row mean N, for stages, pipelines and spares."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.supervisor import lifecycle, restart_policy
from zpptool.supervisor.backoff import Backoff
from zpptool.supervisor.lifecycle import Cause, Event, Lost, Phase, Rules, State, decide
from zpptool.supervisor.restart_policy import RestartPolicy
from zpptool.supervisor.standby import policy as standby_policy
from zpptool.supervisor.standby.policy import StartPolicy


def test_delays_are_doubled_up_to_a_limit() -> None:
    backoff = Backoff(max_failures=9, first_s=1.0, longest_s=3.0)
    assert [backoff.delay_s(failures) for failures in (0, 1, 2, 3, 1000)] == [0.0, 1.0, 2.0, 3.0, 3.0]


def test_the_first_failures_may_be_retried_at_once() -> None:
    backoff = Backoff(max_failures=9, first_s=1.0, longest_s=16.0, immediate=1)
    assert [backoff.delay_s(failures) for failures in range(8)] == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0]


@pytest.mark.parametrize(("max_failures", "exhausted_at"), [(5, 5), (1, 1), (0, 1)])
def test_as_many_failures_as_it_says_exhaust_it(max_failures: int, exhausted_at: int) -> None:
    backoff = Backoff(max_failures, first_s=1.0)
    assert [backoff.is_exhausted(failures) for failures in range(exhausted_at)] == [False] * exhausted_at
    assert backoff.is_exhausted(exhausted_at)
    assert backoff.is_exhausted(exhausted_at + 1)


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_a_delay_never_shrinks_and_is_never_over_the_limit(failures: int, immediate: int) -> None:
    backoff = Backoff(max_failures=5, first_s=0.5, longest_s=30.0, immediate=immediate)
    assert backoff.delay_s(failures) <= backoff.delay_s(failures + 1) <= 30.0


def failures_of_a_stage() -> int:
    policy, failures = RestartPolicy(), 1
    while policy.delay_s("stage 1", -int(signal.SIGKILL), became_ready=False) is not None:
        failures += 1
    return failures


def failures_of_a_pipeline() -> int:
    rules, state, failures = Rules(places=(0, 1)), State(), 0
    for event in (Event.BEGIN, Event.WHOLE):
        state, _ = decide(state, event, rules)
    while state.phase is not Phase.ENDING:
        failures += 1
        for event in (Event.BREAK, Lost(Cause("stage 1 was killed")), Event.CLEARED, Event.ALARM):
            if state.phase is not Phase.ENDING:
                state, _ = decide(state, event, rules)
    return failures


def failures_of_spares() -> int:
    policy, failures = StartPolicy(), 0
    while not policy.is_exhausted:
        policy.record_failure(0.0, 0.0)
        failures += 1
    return failures


@pytest.mark.parametrize(
    ("backoff", "failures"),
    [
        (restart_policy.BACKOFF, failures_of_a_stage),
        (lifecycle.BACKOFF, failures_of_a_pipeline),
        (standby_policy.BACKOFF, failures_of_spares),
    ],
    ids=["stage", "pipeline", "spares"],
)
def test_everything_that_is_restarted_is_given_up_after_five_failures(backoff: Backoff, failures: object) -> None:
    """As docs/recovery.md and docs/serving.md say."""
    assert callable(failures)
    assert failures() == backoff.max_failures == 5
