# SPDX-License-Identifier: Apache-2.0
"""The status of a ring: which stage hangs, and what phase the ring as a whole is in."""

from __future__ import annotations

import pytest

from tests.rings import stage
from zpptool.ring.status import (
    BROKEN,
    COMPUTING,
    LOADING,
    READY,
    RECOVERING,
    UNHEARD,
    WAITING,
    WARMING_UP,
    RingStatus,
    StageStatus,
    aged,
    hung,
    is_silent,
    phase_of,
    reason_not_serving,
    unheard,
)


@pytest.mark.parametrize(
    ("stages", "hanging"),
    [
        ([stage(0), stage(1)], None),
        ([stage(0, COMPUTING, beat_age_s=9.0), stage(1)], None),
        ([stage(0), stage(1, COMPUTING, beat_age_s=11.0)], 1),
        ([stage(0), stage(1, heard_age_s=11.0), stage(2, heard_age_s=12.0)], 1),
        ([stage(0), stage(1, heard_age_s=9.7), stage(2, heard_age_s=10.2)], 1),
        ([stage(0, heard_age_s=2.0), stage(1), stage(2, heard_age_s=10.2)], 2),
        ([stage(0), stage(1, LOADING, beat_age_s=500.0), stage(2, WARMING_UP, heard_age_s=500.0)], None),
        ([stage(0), stage(1, LOADING, heard_age_s=500.0), stage(2, COMPUTING, beat_age_s=11.0)], 2),
        ([unheard(0, 0, 9.0)], None),
        ([stage(0), unheard(1, 0, 11.0)], 1),
    ],
)
def test_the_first_stage_that_hangs_is_named(stages: list[StageStatus], hanging: int | None) -> None:
    found = hung(stages, 10.0)
    assert (found.stage if found else None) == hanging


def test_a_main_loop_without_progress_in_a_report_is_taken_to_make_none_since() -> None:
    assert aged(stage(0, COMPUTING, beat_age_s=2.0), 3.0).beat_age_s == 5.0
    assert aged(stage(0, READY), 3.0).beat_age_s == 0.0
    assert aged(stage(0, READY), 3.0).heard_age_s == pytest.approx(3.1)


@pytest.mark.parametrize(
    ("phases", "gathered", "busy", "whole"),
    [
        ((READY, READY), False, True, WAITING),
        ((READY, LOADING), True, True, LOADING),
        ((WARMING_UP, LOADING), True, True, LOADING),
        ((WARMING_UP, READY), True, True, WARMING_UP),
        ((COMPUTING, READY), True, True, COMPUTING),
        ((READY, UNHEARD), True, False, READY),
    ],
)
def test_the_ring_is_in_the_phase_of_its_slowest_stage(
    phases: tuple[str, ...], gathered: bool, busy: bool, whole: str
) -> None:
    assert phase_of([stage(0, phase) for phase in phases], gathered=gathered, busy=busy) == whole


@pytest.mark.parametrize(
    ("status", "silent"),
    [
        (stage(1), False),
        (stage(1, COMPUTING, heard_age_s=2.9), False),
        (stage(1, COMPUTING, heard_age_s=3.1), True),
        (stage(1, LOADING, heard_age_s=300.0), False),
        (unheard(1, 0, 4.0), True),
    ],
)
def test_a_stage_without_recent_reports_is_silent_unless_it_loads(status: StageStatus, silent: bool) -> None:
    assert is_silent(status) == silent


@pytest.mark.parametrize(
    ("phase", "fault", "age_s", "reason"),
    [
        (READY, "", 5.0, ""),
        (COMPUTING, "", 0.1, ""),
        (RECOVERING, "", 5.0, "no report from stage 1 for 5 s"),
        (RECOVERING, "", 0.1, "requests wait"),
        (LOADING, "", 0.1, "requests wait"),
        (BROKEN, "stage 1 was lost", 5.0, "stage 1 was lost"),
    ],
)
def test_a_ring_that_takes_no_requests_reports_the_reason(phase: str, fault: str, age_s: float, reason: str) -> None:
    stages = (stage(0), stage(1, heard_age_s=age_s))
    ring = RingStatus(run_id="r", epoch=1, phase=phase, fault=fault, stages=stages, head=stage(-1))
    assert reason_not_serving(ring) == reason
