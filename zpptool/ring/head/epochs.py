# SPDX-License-Identifier: Apache-2.0
"""The life of a ring, as a pure function: where it stands and what happened give where it stands then and what to do.

The invariant: every loss begins a new epoch, what belongs to an older one changes nothing, and calls are let in only
when every stage of the present epoch has been set up. A ring that is over stays over.

            Closed: call the roll          Answered: replay the set-up            Ready: let calls in
    GATHERING ------------------> GATHERING ---------------------------> SETTING_UP -----------------> WHOLE
        ^                                                                    |                           |
        '------------------ Lost: begin the next epoch ----------------------'---------------------------'

Whatever stops it, a deadline, stages that do not fit, a set-up that fails, or the user, leads to OVER.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from zpptool.errors import ZppError


class Phase(enum.Enum):
    """Where a ring stands."""

    GATHERING = "gathering"
    SETTING_UP = "setting up"
    WHOLE = "whole"
    OVER = "over"


@dataclass(frozen=True)
class RingState:
    """Where a ring stands, and in which epoch. `may_recover` is whether a loss is survived."""

    phase: Phase
    epoch: int
    may_recover: bool


@dataclass(frozen=True)
class Closed:
    """The head was welcomed by the last stage, so every link of this epoch is there."""

    epoch: int


@dataclass(frozen=True)
class Answered:
    """The roll call of this epoch came home; `fault` says why these stages make no pipeline, None that they do."""

    epoch: int
    fault: ZppError | None


@dataclass(frozen=True)
class Ready:
    """Every stage has done every set-up call in this epoch."""

    epoch: int


@dataclass(frozen=True)
class Lost:
    """A stage, or the way to it, was lost in this epoch."""

    epoch: int
    fault: ZppError


@dataclass(frozen=True)
class Failed:
    """Something that no new epoch would mend: a deadline passed, a set-up call failed, a message could not be read."""

    fault: ZppError


@dataclass(frozen=True)
class Stopped:
    """The run was ended in good order."""


Event = Closed | Answered | Ready | Lost | Failed | Stopped


@dataclass(frozen=True)
class CallTheRoll:
    """Ask every stage who it is."""


@dataclass(frozen=True)
class BeginEpoch:
    """Let the calls under way come to nothing, and welcome everybody anew, in this epoch."""

    epoch: int
    why: ZppError


@dataclass(frozen=True)
class Admit:
    """Tell every stage that it is in, and repeat the set-up calls."""


@dataclass(frozen=True)
class LetIn:
    """Let calls in: the ring is whole."""


@dataclass(frozen=True)
class GiveUp:
    """Fail every call, now and later, with this, and tell every stage that is still reached."""

    why: ZppError


Action = CallTheRoll | BeginEpoch | Admit | LetIn | GiveUp


FIRST_EPOCH = 1


def begin(epoch: int = FIRST_EPOCH, *, may_recover: bool) -> RingState:
    """A ring of which nothing is known yet. Its links are opened in this epoch."""
    return RingState(Phase.GATHERING, epoch, may_recover)


def react(state: RingState, event: Event) -> tuple[RingState, Action | None]:
    """Where the ring stands after an event, and the one thing to do about it."""
    if state.phase is Phase.OVER:
        return state, None
    if isinstance(event, Stopped):
        return replace(state, phase=Phase.OVER), None
    if isinstance(event, Failed):
        return replace(state, phase=Phase.OVER), GiveUp(event.fault)
    if event.epoch != state.epoch:
        return state, None
    match event, state.phase:
        case Lost(fault=fault), _:
            if not state.may_recover:
                return replace(state, phase=Phase.OVER), GiveUp(fault)
            later = replace(state, phase=Phase.GATHERING, epoch=state.epoch + 1)
            return later, BeginEpoch(later.epoch, fault)
        case Closed(), Phase.GATHERING:
            return state, CallTheRoll()
        case Answered(fault=None), Phase.GATHERING:
            return replace(state, phase=Phase.SETTING_UP), Admit()
        case Answered(fault=fault), Phase.GATHERING if fault is not None:
            return replace(state, phase=Phase.OVER), GiveUp(fault)
        case Ready(), Phase.SETTING_UP:
            return replace(state, phase=Phase.WHOLE), LetIn()
    return state, None
