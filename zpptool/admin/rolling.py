# SPDX-License-Identifier: Apache-2.0
"""How stages leave a running ring in turn and are taken in again, as a pure function: where it stands and what is seen
give where it stands then and what to do.

The invariant: stages are asked to leave only while the ring is whole and has computed something since the last turn, or
has nothing to compute; so at most one group of them is away, and requests move on between two turns. A group's turn is
over when other processes hold all its seats. Who has asked may have it end between two turns, never within one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zpptool.errors import ZppError
from zpptool.ring.head.view import RingSnapshot
from zpptool.ring.messages import Seat


@dataclass(frozen=True)
class RollingPlan:
    """Where the turns stand.

    Attributes:
        groups: the places that are still to leave, each group together.
        leaving: the seats that were asked to leave, of the first group; empty between two turns.
        asked_in: the epoch in which they were asked.
    """

    groups: tuple[tuple[int, ...], ...]
    leaving: tuple[Seat, ...] = ()
    asked_in: int = 0


@dataclass(frozen=True)
class Ask:
    """Ask who holds these seats to leave."""

    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Came:
    """A turn is over: these have come in the place of those who left."""

    left: tuple[Seat, ...]
    now: tuple[Seat, ...]


@dataclass(frozen=True)
class Over:
    """There is no further turn: because of a fault; or because none is left, or none is wanted."""

    fault: ZppError | None = None


Action = Ask | Came | Over


def react(turns: RollingPlan, look: RingSnapshot) -> tuple[RollingPlan, Action | None]:
    """Where the turns stand after a look, and the one thing to do about it; None is to look again later."""
    if look.fault is not None:
        return turns, Over(look.fault)
    if look.settled is None:
        return turns, None
    if not turns.leaving:
        if not turns.groups or not look.wanted:
            return turns, Over()
        leaving = tuple(look.seats[place] for place in turns.groups[0])
        return replace(turns, leaving=leaving, asked_in=look.settled), Ask(leaving)
    stayed = tuple(seat for seat in turns.leaving if look.seats[seat.stage] == seat)
    if not stayed:
        now = tuple(look.seats[seat.stage] for seat in turns.leaving)
        return RollingPlan(turns.groups[1:]), Came(turns.leaving, now)
    if look.settled == turns.asked_in:
        return turns, None
    return replace(turns, asked_in=look.settled), Ask(stayed)  # the word was lost with an epoch
