# SPDX-License-Identifier: Apache-2.0
"""Which process hangs, and when a ring that has lost processes is whole again."""

from __future__ import annotations

import msgspec
import pytest
from rings import ring, stage

from zpptool.places import HEAD
from zpptool.ring.status import COMPUTING, LOADING, READY, RECOVERING, WAITING, RingStatus, unheard
from zpptool.supervisor.hang_detection import find_hung, is_repaired

PIDS = {HEAD: 1, 0: 10, 1: 11, 2: 12}
HEALTHY = (stage(0, pid=10), stage(1, pid=11), stage(2, pid=12))
SILENT = stage(1, pid=11, heard_age_s=9.0)


def recovering(*stages: object) -> RingStatus:
    """A ring that has lost something."""
    return msgspec.structs.replace(ring(*stages), phase=RECOVERING)


def test_a_stage_that_is_silent_while_the_ring_waits_for_it_hangs() -> None:
    found = find_hung(recovering(HEALTHY[0], SILENT, stage(2, pid=12, heard_age_s=9.0)), 0.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == 1
    assert "is silent, last heard 9.0 s ago" in found[1]


def test_a_main_loop_without_progress_hangs_although_its_stage_reports() -> None:
    found = find_hung(recovering(*HEALTHY[:2], stage(2, COMPUTING, pid=12, beat_age_s=7.0)), 0.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == 2
    assert "has not moved for 7.0 s" in found[1]


@pytest.mark.parametrize(
    "status",
    [
        None,
        ring(HEALTHY[0], SILENT, HEALTHY[2]),
        recovering(*HEALTHY),
        recovering(HEALTHY[0], stage(1, pid=99, heard_age_s=9.0), stage(2, pid=12, heard_age_s=9.0)),
        recovering(HEALTHY[0], stage(1, LOADING, pid=11, heard_age_s=9.0), HEALTHY[2]),
        recovering(HEALTHY[0], unheard(1, 3, 9.0), unheard(2, 3, 9.0)),
    ],
    ids=["no head", "no recovery", "all healthy", "status of a former process", "loading", "never heard"],
)
def test_no_process_hangs(status: RingStatus | None) -> None:
    assert find_hung(status, 0.0, 5.0, PIDS) is None


def test_a_head_that_has_stopped_answering_hangs() -> None:
    assert find_hung(ring(*HEALTHY), 4.0, 5.0, PIDS) is None
    found = find_hung(ring(*HEALTHY), 6.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == HEAD
    assert find_hung(None, 6.0, 5.0, PIDS) is None


@pytest.mark.parametrize("phase", [READY, COMPUTING])
def test_a_ring_is_repaired_when_it_is_whole_without_the_lost_processes(phase: str) -> None:
    status = msgspec.structs.replace(ring(*HEALTHY), phase=phase)
    assert is_repaired(status, frozenset({9}))
    assert not is_repaired(status, frozenset({9, 11}))


@pytest.mark.parametrize("phase", [RECOVERING, WAITING, LOADING, "broken"])
def test_a_ring_in_any_other_phase_is_not_repaired(phase: str) -> None:
    assert not is_repaired(msgspec.structs.replace(ring(*HEALTHY), phase=phase), frozenset())
    assert not is_repaired(None, frozenset())
    assert not is_repaired(ring(HEALTHY[0], unheard(1, 3, 0.0)), frozenset())
