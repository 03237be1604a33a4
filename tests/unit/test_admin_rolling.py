# SPDX-License-Identifier: Apache-2.0
"""Rolling restarts: every snapshot in every state, and whole rollouts of rings that lose requests and stages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.admin.rolling import Ask, Came, Over, RollingPlan, react
from zpptool.errors import ZppError, stage_error
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Seat

FAULT = stage_error("the ring is over")


def seat(stage: int, generation: int) -> Seat:
    return Seat(stage, "here", 100 * generation + stage)


OLD = tuple(seat(stage, 1) for stage in range(3))
NEW = tuple(seat(stage, 2) for stage in range(3))
FIRST = (OLD[0], OLD[1])
STATES = [
    RollingPlan(((0, 1), (2,))),
    RollingPlan(((0, 1), (2,)), FIRST, asked_in=3),
    RollingPlan(((2,),)),
    RollingPlan(((2,),), (OLD[2],), asked_in=3),
    RollingPlan(()),
]
SNAPSHOTS = [
    RingSnapshot(seats, settled, fault, client_connected)
    for seats in (OLD, NEW, (NEW[0], OLD[1], OLD[2]))
    for settled in (None, 3, 4)
    for fault in (None, FAULT)
    for client_connected in (True, False)
]


def expected(plan: RollingPlan, ring: RingSnapshot) -> tuple[RollingPlan, object]:
    """The rule once more, case by case."""
    if ring.fault:
        return plan, Over(FAULT)
    if ring.settled is None:
        return plan, None
    if not plan.leaving:
        if not plan.groups or not ring.client_connected:
            return plan, Over()
        asked = tuple(ring.seats[place] for place in plan.groups[0])
        return RollingPlan(plan.groups, asked, ring.settled), Ask(asked)
    stayed = [one for one in plan.leaving if one in ring.seats]
    if stayed and ring.settled == plan.asked_in:
        return plan, None
    if stayed:
        return RollingPlan(plan.groups, plan.leaving, ring.settled), Ask(tuple(stayed))
    return RollingPlan(plan.groups[1:]), Came(plan.leaving, tuple(ring.seats[one.stage] for one in plan.leaving))


@pytest.mark.parametrize(("plan", "ring"), list(itertools.product(STATES, SNAPSHOTS)))
def test_every_snapshot_in_every_state(plan: RollingPlan, ring: RingSnapshot) -> None:
    assert react(plan, ring) == expected(plan, ring)


@given(st.lists(st.sampled_from(["leaves", "request is lost", "another is lost"]), max_size=12))
def test_a_rollout_restarts_every_stage_whatever_is_lost_meanwhile(fates: list[str]) -> None:
    """A request that is lost with an epoch is repeated; only the end of the run ends a rollout early."""
    seats, generations, epoch, asked = list(OLD), itertools.count(2), 1, 0
    plan, came = RollingPlan(((0,), (1,), (2,))), []
    for _ in range(100):
        plan, action = react(plan, RingSnapshot(tuple(seats), epoch))
        match action:
            case Ask(seats=(leaving,)):
                asked += 1
                fate = fates.pop() if fates else "leaves"
                if fate == "leaves":
                    seats[leaving.stage] = seat(leaving.stage, next(generations))
                if fate == "another is lost":
                    other = (leaving.stage + 1) % 3
                    seats[other] = seat(other, next(generations))
                epoch += 1
            case Came(now=(now,)):
                came.append(now.stage)
            case Over():
                break
    assert came == [0, 1, 2]
    assert not set(seats) & set(OLD)
    assert asked >= 3


def test_after_a_disconnect_the_group_under_way_is_completed_and_no_other_begun() -> None:
    plan, action = react(RollingPlan(((0,), (1,))), RingSnapshot(OLD, 3))
    assert action == Ask((OLD[0],))
    plan, action = react(plan, RingSnapshot((NEW[0], *OLD[1:]), 4, client_connected=False))
    assert action == Came((OLD[0],), (NEW[0],))
    assert react(plan, RingSnapshot((NEW[0], *OLD[1:]), 4, client_connected=False)) == (RollingPlan(((1,),)), Over())


def test_the_fault_of_the_ring_ends_the_rollout() -> None:
    _, action = react(RollingPlan(((0,),)), RingSnapshot(OLD, 3, FAULT))
    assert isinstance(action, Over)
    assert isinstance(action.fault, ZppError)
