# SPDX-License-Identifier: Apache-2.0
"""When a spare process may be started, and which assignment it may take."""

from __future__ import annotations

import pytest

from zpptool.process.environment import PHASE_VARIABLE
from zpptool.supervisor.standby.page_cache import has_room
from zpptool.supervisor.standby.policy import BACKOFF, LONG_READY_S, STABLE_S, StartPolicy, early_variables, fits

THREADS = {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("own", "required", "may"),
    [
        (THREADS, THREADS, True),
        (THREADS, {**THREADS, "CUDA_VISIBLE_DEVICES": "3"}, True),
        (THREADS, {**THREADS, PHASE_VARIABLE: "/run/stage-1"}, True),
        (THREADS, {"OMP_NUM_THREADS": "2"}, False),
        (THREADS, {}, False),
        ({}, THREADS, False),
    ],
)
def test_a_spare_takes_an_assignment_only_if_what_is_read_early_is_the_same(
    own: dict[str, str], required: dict[str, str], may: bool
) -> None:
    assert fits(own, required) is may


def test_a_spare_is_started_with_what_all_assignments_have() -> None:
    required = {**THREADS, "CUDA_VISIBLE_DEVICES": "3", PHASE_VARIABLE: "/run/stage-1"}
    assert early_variables(required) == THREADS
    assert fits(early_variables(required), required)


def test_a_spare_is_started_only_once_the_pipeline_is_stable() -> None:
    policy = StartPolicy()
    assert not policy.may_start(0.0, stable=True)
    assert not policy.may_start(STABLE_S - 0.1, stable=True)
    assert policy.may_start(STABLE_S, stable=True)
    assert not policy.may_start(STABLE_S + 1, stable=False)
    assert not policy.may_start(STABLE_S + 2, stable=True)
    assert policy.may_start(2 * STABLE_S + 2, stable=True)


def first_allowed(policy: StartPolicy, now: float) -> float:
    """Seconds from `now` in a stable pipeline until a spare may be started."""
    for tenths in range(10_000):
        if policy.may_start(now + tenths / 10, stable=True):
            return tenths / 10
    return float("inf")


def test_spares_that_end_unused_are_replaced_ever_later_and_then_not_at_all() -> None:
    policy, now = StartPolicy(), 1000.0
    policy.may_start(0.0, stable=True)
    for number in range(BACKOFF.max_failures - 1):
        policy.record_failure(now, 1.0)
        delay_s = first_allowed(policy, now)
        assert delay_s == BACKOFF.first_s * 2**number
        now += delay_s
    policy.record_failure(now, 1.0)
    assert policy.is_exhausted
    assert first_allowed(policy, now) == float("inf")


def test_a_spare_that_was_ready_for_long_begins_a_new_row_of_failures() -> None:
    policy = StartPolicy()
    for _ in range(2 * BACKOFF.max_failures):
        policy.record_failure(0.0, LONG_READY_S)
    assert not policy.is_exhausted


@pytest.mark.parametrize(("nbytes", "available", "room"), [(0, 0, True), (50, 100, True), (51, 100, False)])
def test_weights_are_read_ahead_only_where_memory_has_room(nbytes: int, available: int, room: bool) -> None:
    assert has_room(nbytes, available) is room
