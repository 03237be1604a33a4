# SPDX-License-Identifier: Apache-2.0
"""Which process is said to hang, and when a ring that has lost some is whole again."""

from __future__ import annotations

import msgspec
import pytest
from rings import ring, stage

from zpptool.places import HEAD
from zpptool.ring.status import COMPUTING, LOADING, READY, RECOVERING, WAITING, RingStatus, unheard
from zpptool.supervisor.hang_detection import hanging, is_mended

PIDS = {HEAD: 1, 0: 10, 1: 11, 2: 12}
WELL = (stage(0, pid=10), stage(1, pid=11), stage(2, pid=12))
SILENT = stage(1, pid=11, heard_age_s=9.0)


def recovering(*stages: object) -> RingStatus:
    """A ring that has lost something."""
    return msgspec.structs.replace(ring(*stages), phase=RECOVERING)


def test_a_stage_that_is_silent_while_the_ring_waits_for_it_hangs() -> None:
    found = hanging(recovering(WELL[0], SILENT, stage(2, pid=12, heard_age_s=9.0)), 0.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == 1
    assert "is silent, last heard 9.0 s ago" in found[1]


def test_a_main_loop_that_stands_still_hangs_though_its_stage_is_heard() -> None:
    found = hanging(recovering(*WELL[:2], stage(2, COMPUTING, pid=12, beat_age_s=7.0)), 0.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == 2
    assert "has not moved for 7.0 s" in found[1]


@pytest.mark.parametrize(
    "told",
    [
        None,
        ring(WELL[0], SILENT, WELL[2]),
        recovering(*WELL),
        recovering(WELL[0], stage(1, pid=99, heard_age_s=9.0), stage(2, pid=12, heard_age_s=9.0)),
        recovering(WELL[0], stage(1, LOADING, pid=11, heard_age_s=9.0), WELL[2]),
        recovering(WELL[0], unheard(1, 3, 9.0), unheard(2, 3, 9.0)),
    ],
    ids=["no head", "nothing is asked", "all are well", "of the one before", "loads", "never heard"],
)
def test_nobody_is_blamed(told: RingStatus | None) -> None:
    assert hanging(told, 0.0, 5.0, PIDS) is None


def test_a_head_that_answers_no_more_hangs() -> None:
    assert hanging(ring(*WELL), 4.0, 5.0, PIDS) is None
    found = hanging(ring(*WELL), 6.0, 5.0, PIDS)
    assert found is not None
    assert found[0] == HEAD
    assert hanging(None, 6.0, 5.0, PIDS) is None


@pytest.mark.parametrize("phase", [READY, COMPUTING])
def test_a_ring_is_mended_when_it_is_whole_without_the_lost(phase: str) -> None:
    told = msgspec.structs.replace(ring(*WELL), phase=phase)
    assert is_mended(told, frozenset({9}))
    assert not is_mended(told, frozenset({9, 11}))


@pytest.mark.parametrize("phase", [RECOVERING, WAITING, LOADING, "broken"])
def test_a_ring_in_any_other_phase_is_not(phase: str) -> None:
    assert not is_mended(msgspec.structs.replace(ring(*WELL), phase=phase), frozenset())
    assert not is_mended(None, frozenset())
    assert not is_mended(ring(WELL[0], unheard(1, 3, 0.0)), frozenset())
