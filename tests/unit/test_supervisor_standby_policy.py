# SPDX-License-Identifier: Apache-2.0
"""When a spare process may be started, and which part it may take."""

from __future__ import annotations

import pytest

from zpptool.process.progress import PHASE_VARIABLE
from zpptool.supervisor.standby.page_cache import has_room
from zpptool.supervisor.standby.policy import CALM_S, FIRST_REST_S, MOST_IN_A_ROW, STOOD_S, Patience, common, fits

THREADS = {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("own", "wanted", "may"),
    [
        (THREADS, THREADS, True),
        (THREADS, {**THREADS, "CUDA_VISIBLE_DEVICES": "3"}, True),
        (THREADS, {**THREADS, PHASE_VARIABLE: "/run/stage-1"}, True),
        (THREADS, {"OMP_NUM_THREADS": "2"}, False),
        (THREADS, {}, False),
        ({}, THREADS, False),
    ],
)
def test_a_spare_takes_a_part_only_where_what_is_read_early_is_the_same(
    own: dict[str, str], wanted: dict[str, str], may: bool
) -> None:
    assert fits(own, wanted) is may


def test_a_spare_is_started_with_what_all_parts_have() -> None:
    wanted = {**THREADS, "CUDA_VISIBLE_DEVICES": "3", PHASE_VARIABLE: "/run/stage-1"}
    assert common(wanted) == THREADS
    assert fits(common(wanted), wanted)


def test_a_spare_is_started_only_after_a_while_of_calm() -> None:
    patience = Patience()
    assert not patience.look(0.0, calm=True)
    assert not patience.look(CALM_S - 0.1, calm=True)
    assert patience.look(CALM_S, calm=True)
    assert not patience.look(CALM_S + 1, calm=False)
    assert not patience.look(CALM_S + 2, calm=True)
    assert patience.look(2 * CALM_S + 2, calm=True)


def first_allowed(patience: Patience, now: float) -> float:
    """How long it takes from then, in calm, until a spare may be started."""
    for tenths in range(10_000):
        if patience.look(now + tenths / 10, calm=True):
            return tenths / 10
    return float("inf")


def test_spares_that_end_unused_are_replaced_less_and_less_often_and_then_not_at_all() -> None:
    patience, now = Patience(), 1000.0
    patience.look(0.0, calm=True)
    for number in range(MOST_IN_A_ROW - 1):
        patience.lost(now, 1.0)
        rest = first_allowed(patience, now)
        assert rest == FIRST_REST_S * 2**number
        now += rest
    patience.lost(now, 1.0)
    assert patience.at_its_end
    assert first_allowed(patience, now) == float("inf")


def test_a_spare_that_was_ready_for_long_has_not_ended_in_vain() -> None:
    patience = Patience()
    for _ in range(2 * MOST_IN_A_ROW):
        patience.lost(0.0, STOOD_S)
    assert not patience.at_its_end


@pytest.mark.parametrize(("nbytes", "available", "room"), [(0, 0, True), (50, 100, True), (51, 100, False)])
def test_weights_are_read_ahead_only_where_memory_has_room(nbytes: int, available: int, room: bool) -> None:
    assert has_room(nbytes, available) is room
