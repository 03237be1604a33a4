# SPDX-License-Identifier: Apache-2.0
"""The epochs of a ring as a pure function: a state and an event give the next state and an action.

The invariant: every loss begins a new epoch, events of an older one change nothing, and calls are admitted only when
every stage of the present epoch has been set up. A run that is over stays over.

            Closed: call the roll          Answered: replay the set-up            Ready: admit calls
    GATHERING ------------------> GATHERING ---------------------------> SETTING_UP -----------------> WHOLE
        ^                                                                    |                           |
        '------------------ Lost: begin the next epoch ----------------------'---------------------------'

A deadline, stages that do not fit together, a set-up call that fails, or a stop by the user leads to OVER.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from zpptool.errors import ZppError


class Phase(enum.Enum):
    """What a ring waits for."""

    GATHERING = "gathering"
    SETTING_UP = "setting up"
    WHOLE = "whole"
    OVER = "over"


@dataclass(frozen=True)
class RingState:
    """The state of a ring.

    Attributes:
        phase: what it waits for.
        epoch: the present epoch.
        may_recover: whether a loss begins a new epoch; otherwise it ends the run.
    """

    phase: Phase
    epoch: int
    may_recover: bool


@dataclass(frozen=True)
class Closed:
    """The last stage has accepted the head's link, so every link of the ring is up in this epoch."""

    epoch: int


@dataclass(frozen=True)
class Answered:
    """The roll call of this epoch has come back; `fault` is why these stages make no pipeline, None if they do."""

    epoch: int
    fault: ZppError | None


@dataclass(frozen=True)
class Ready:
    """Every stage has done every set-up call in this epoch."""

    epoch: int


@dataclass(frozen=True)
class Lost:
    """A stage, or the connection to it, was lost in this epoch."""

    epoch: int
    fault: ZppError


@dataclass(frozen=True)
class Failed:
    """A fault that a new epoch would not remove: a missed deadline, a failed set-up call, an unreadable message."""

    fault: ZppError


@dataclass(frozen=True)
class Stopped:
    """The run was ended in good order."""


Event = Closed | Answered | Ready | Lost | Failed | Stopped


@dataclass(frozen=True)
class CallTheRoll:
    """Ask every stage to identify itself."""


@dataclass(frozen=True)
class BeginEpoch:
    """Drop the calls under way and open every link anew, in this epoch."""

    epoch: int
    why: ZppError


@dataclass(frozen=True)
class Admit:
    """Send the stages the verdict that admits them, and repeat the set-up calls."""


@dataclass(frozen=True)
class LetIn:
    """Admit calls: the ring is whole."""


@dataclass(frozen=True)
class GiveUp:
    """Fail every call, present and later ones, with this fault."""

    why: ZppError


Action = CallTheRoll | BeginEpoch | Admit | LetIn | GiveUp


FIRST_EPOCH = 1
"""The epoch of a run before any loss."""


def begin(epoch: int = FIRST_EPOCH, *, may_recover: bool) -> RingState:
    """The state of a ring before any event. Its links are opened in this epoch."""
    return RingState(Phase.GATHERING, epoch, may_recover)


def react(state: RingState, event: Event) -> tuple[RingState, Action | None]:
    """The state after an event, and the one action that follows; None for no action."""
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
