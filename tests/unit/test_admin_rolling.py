# SPDX-License-Identifier: Apache-2.0
"""Stages that leave in turn: every look in every state, and whole rollouts of rings that lose words and stages."""

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


def seat(stage: int, life: int) -> Seat:
    return Seat(stage, "here", 100 * life + stage)


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
LOOKS = [
    RingSnapshot(seats, settled, fault, wanted)
    for seats in (OLD, NEW, (NEW[0], OLD[1], OLD[2]))
    for settled in (None, 3, 4)
    for fault in (None, FAULT)
    for wanted in (True, False)
]


def expected(turns: RollingPlan, look: RingSnapshot) -> tuple[RollingPlan, object]:
    """The rule, written out once more by cases."""
    if look.fault:
        return turns, Over(FAULT)
    if look.settled is None:
        return turns, None
    if not turns.leaving:
        if not turns.groups or not look.wanted:
            return turns, Over()
        asked = tuple(look.seats[place] for place in turns.groups[0])
        return RollingPlan(turns.groups, asked, look.settled), Ask(asked)
    there = [one for one in turns.leaving if one in look.seats]
    if there and look.settled == turns.asked_in:
        return turns, None
    if there:
        return RollingPlan(turns.groups, turns.leaving, look.settled), Ask(tuple(there))
    return RollingPlan(turns.groups[1:]), Came(turns.leaving, tuple(look.seats[one.stage] for one in turns.leaving))


@pytest.mark.parametrize(("turns", "look"), list(itertools.product(STATES, LOOKS)))
def test_every_look_in_every_state(turns: RollingPlan, look: RingSnapshot) -> None:
    assert react(turns, look) == expected(turns, look)


@given(st.lists(st.sampled_from(["hears", "is lost", "another is lost"]), max_size=12))
def test_a_rollout_ends_with_every_stage_new_whatever_is_lost_on_the_way(fates: list[str]) -> None:
    """A word that is lost with an epoch is said again; only the ring's own end ends it before."""
    seats, lives, epoch, asked = list(OLD), itertools.count(2), 1, 0
    turns, came = RollingPlan(((0,), (1,), (2,))), []
    for _ in range(100):
        turns, action = react(turns, RingSnapshot(tuple(seats), epoch))
        match action:
            case Ask(seats=(leaving,)):
                asked += 1
                fate = fates.pop() if fates else "hears"
                if fate == "hears":
                    seats[leaving.stage] = seat(leaving.stage, next(lives))
                if fate == "another is lost":
                    other = (leaving.stage + 1) % 3
                    seats[other] = seat(other, next(lives))
                epoch += 1
            case Came(now=(now,)):
                came.append(now.stage)
            case Over():
                break
    assert came == [0, 1, 2]
    assert not set(seats) & set(OLD)
    assert asked >= 3


def test_nothing_is_begun_for_one_who_has_gone_and_what_was_begun_is_ended() -> None:
    turns, action = react(RollingPlan(((0,), (1,))), RingSnapshot(OLD, 3))
    assert action == Ask((OLD[0],))
    turns, action = react(turns, RingSnapshot((NEW[0], *OLD[1:]), 4, wanted=False))
    assert action == Came((OLD[0],), (NEW[0],))
    assert react(turns, RingSnapshot((NEW[0], *OLD[1:]), 4, wanted=False)) == (RollingPlan(((1,),)), Over())


def test_a_fault_is_told_as_it_is() -> None:
    _, action = react(RollingPlan(((0,),)), RingSnapshot(OLD, 3, FAULT))
    assert isinstance(action, Over)
    assert isinstance(action.fault, ZppError)
