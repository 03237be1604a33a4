# SPDX-License-Identifier: Apache-2.0
"""The rolling restart of stages, as a pure function: a plan and a snapshot of the ring give a new plan and an action.

The invariant: stages are asked to leave only while the ring is whole and has computed something since the last restart,
or has nothing to compute. So at most one group of stages is missing at a time, and requests make progress between two
groups. A group is done when other processes hold all its seats. When the client disconnects, the rolling restart ends
between two groups, never within one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zpptool.errors import ZppError
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Seat


@dataclass(frozen=True)
class RollingPlan:
    """What remains of a rolling restart.

    Attributes:
        groups: the places that have yet to restart; each group restarts together.
        leaving: the seats of the first group, if they were asked to leave; empty between two groups.
        asked_in: the epoch in which they were asked.
    """

    groups: tuple[tuple[int, ...], ...]
    leaving: tuple[Seat, ...] = ()
    asked_in: int = 0


@dataclass(frozen=True)
class Ask:
    """Ask the processes with these seats to leave."""

    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Came:
    """A group is done: these seats have replaced those that left."""

    left: tuple[Seat, ...]
    now: tuple[Seat, ...]


@dataclass(frozen=True)
class Over:
    """The rolling restart ends: with a fault; or because no group is left, or the client has disconnected."""

    fault: ZppError | None = None


Action = Ask | Came | Over


def react(plan: RollingPlan, ring: RingSnapshot) -> tuple[RollingPlan, Action | None]:
    """The plan after a snapshot of the ring, and the action that follows; None means to look again later."""
    if ring.fault is not None:
        return plan, Over(ring.fault)
    if ring.settled is None:
        return plan, None
    if not plan.leaving:
        if not plan.groups or not ring.client_connected:
            return plan, Over()
        leaving = tuple(ring.seats[place] for place in plan.groups[0])
        return replace(plan, leaving=leaving, asked_in=ring.settled), Ask(leaving)
    stayed = tuple(seat for seat in plan.leaving if ring.seats[seat.stage] == seat)
    if not stayed:
        now = tuple(ring.seats[seat.stage] for seat in plan.leaving)
        return RollingPlan(plan.groups[1:]), Came(plan.leaving, now)
    if ring.settled == plan.asked_in:
        return plan, None
    return replace(plan, asked_in=ring.settled), Ask(stayed)  # an epoch ended before the request arrived
