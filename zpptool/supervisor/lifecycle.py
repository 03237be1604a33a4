# SPDX-License-Identifier: Apache-2.0
r"""The lifecycle of a supervised pipeline, as a pure function: state and event give the next state and the actions.

    new -> starting -> ready -> draining -> ending -> ended
             ^   \      |                     ^
             |    \     v                     |
             |     `-> broken -> (given up) --|
             |           |                    |
          resting <-- clearing --(stopped)----'

Nothing here starts, waits or reads a clock: `supervisor.supervisor` carries out what is decided here, and reports what
happens. What is ended in `clearing` and started after `resting` is what was lost, where the ring recovers from that:
the other processes keep running, whatever the phase is called. There is one alarm; setting it again cancels the former
one. An event that has no meaning in a state changes nothing. Actions name the places that they apply to. Which places
are restarted after a loss is decided by `restarted`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from zpptool.errors import ExitCode
from zpptool.places import HEAD
from zpptool.supervisor.backoff import Backoff

BACKOFF = Backoff(max_failures=5, first_s=1.0, longest_s=30.0)


class Phase(StrEnum):
    """The phase of a pipeline."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    BROKEN = "broken"
    """A process has ended by itself; which one is at fault is being determined."""
    CLEARING = "clearing"
    """What is to be restarted, all of the pipeline or a part, is being ended."""
    RESTING = "waiting to restart"
    DRAINING = "draining"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True)
class Cause:
    """Why a pipeline is not whole.

    Attributes:
        message: what happened to which process, one sentence.
        detail: more to read, such as the end of a log; None for nothing.
        exit_code: what a command that ends for this cause exits with.
        own_reason: the process exited for a reason that would end a second start too.
        planned: the process has left because it was asked to, and nothing has failed.
    """

    message: str
    detail: str | None = None
    exit_code: int = int(ExitCode.STAGE)
    own_reason: bool = False
    planned: bool = False


@dataclass(frozen=True)
class Rules:
    """What stays the same for as long as a pipeline is supervised; times in seconds.

    Attributes:
        places: all of them: `HEAD`, and the numbers of its stages.
        recovery_s: how long the ring waits for what it has lost, so that only this has to be restarted; 0 where the
            ring does not recover from a loss.
        backoff: how long to wait before a restart, and after how many failures in a row to give up.
        stable_s: after being whole for this long, the failures of a pipeline no longer count; those of a repaired one
            no longer count at once.
        start_timeout_s: how long a start may take. A repair may take `recovery_s` more: its ring gives up before that.
        drain_timeout_s: how long requests in progress are waited for when the pipeline is to stop.
    """

    places: tuple[int, ...]
    recovery_s: float = 0.0
    backoff: Backoff = BACKOFF
    stable_s: float = 60.0
    start_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0

    @property
    def recovers(self) -> bool:
        """Whether the ring recovers from the loss of a stage."""
        return self.recovery_s > 0


@dataclass(frozen=True)
class State:
    """The state of a pipeline, and what of its past is still relevant.

    Attributes:
        phase: its phase.
        generation: how many times the pipeline, or a part of it, was started. (The ring's `epoch` is another count.)
        failures: how many starts or runs have failed in a row.
        ever_ready: whether it has been whole since the command began.
        cause: why it is not whole; in `ENDED` why it was given up, None where it was asked to stop.
        giving_up: what is being ended will not be restarted, because of `cause`.
        places: what is started next, or was started last.
    """

    phase: Phase = Phase.NEW
    generation: int = 0
    failures: int = 0
    ever_ready: bool = False
    cause: Cause | None = None
    giving_up: bool = False
    places: tuple[int, ...] = ()


class Event(StrEnum):
    """What can happen, beside a `Lost`."""

    BEGIN = "begin"
    WHOLE = "a token has passed through the ring"
    BREAK = "a process has ended by itself"
    ALARM = "the alarm has fired"
    CLEARED = "every process has ended"
    STOP = "asked to stop"
    DRAINED = "no request is in progress"


@dataclass(frozen=True)
class Lost:
    """Why processes of the pipeline have ended by themselves, once that is known, and their places."""

    cause: Cause
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Start:
    """Start the processes of these places."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class End:
    """End the processes of these places, and report when they have ended; `at_once` without a grace."""

    places: tuple[int, ...]
    at_once: bool = False


@dataclass(frozen=True)
class SetAlarm:
    """Report when this many seconds have passed."""

    after_s: float


@dataclass(frozen=True)
class Report:
    """Report to the user what was lost. `delay_s` is the time until the restart in seconds; None for no restart."""

    cause: Cause
    delay_s: float | None


@dataclass(frozen=True)
class Drain:
    """Admit no new request, and report when none is in progress."""


Action = Start | End | SetAlarm | Report | Drain
Decision = tuple[State, tuple[Action, ...]]


def decide(state: State, event: Event | Lost, rules: Rules) -> Decision:
    """The next state and the actions that follow from an event in a state."""
    if isinstance(event, Lost):
        return _lost(state, event, rules)
    match state.phase, event:
        case Phase.NEW, Event.BEGIN:
            return _start(replace(state, places=rules.places), rules)
        case Phase.STARTING, Event.WHOLE:
            failures = 0 if is_repair(state, rules) else state.failures
            whole = replace(state, phase=Phase.READY, ever_ready=True, failures=failures, cause=None)
            return whole, (SetAlarm(rules.stable_s),)
        case Phase.STARTING | Phase.READY, Event.BREAK:
            return replace(state, phase=Phase.BROKEN), ()
        case Phase.STARTING, Event.ALARM:
            late = Cause(f"the pipeline has not become ready in {start_allowed_s(state, rules):g} s")
            return _fail(state, Lost(late), rules)
        case Phase.READY, Event.ALARM:
            return replace(state, failures=0), ()
        case Phase.RESTING, Event.ALARM:
            return _start(state, rules)
        case Phase.CLEARING, Event.CLEARED:
            return replace(state, phase=Phase.RESTING), (SetAlarm(restart_delay_s(state, rules)),)
        case Phase.DRAINING, Event.DRAINED | Event.ALARM:
            return _end(state, rules)
        case Phase.ENDING, Event.CLEARED:
            return replace(state, phase=Phase.ENDED, cause=state.cause if state.giving_up else None), ()
        case _, Event.STOP:
            return _stop(state, rules)
    return state, ()


def restarted(state: State, lost: tuple[int, ...], rules: Rules) -> tuple[int, ...]:
    """The places that are ended, and started again, when `lost` were lost. Only this function decides it.

    All of them; but where the ring recovers and has been whole once, only what was lost: the other stages keep their
    weights, the requests of the lost stages are computed again, and a new head uses the old stages.
    """
    alone = rules.recovers and state.ever_ready and lost
    return lost if alone else rules.places


def restart_delay_s(state: State, rules: Rules) -> float:
    """Seconds to wait before what was lost is restarted: 0 where a ring waits for it the first time, or has asked it to
    leave."""
    planned = state.cause is not None and state.cause.planned
    waited_for = planned or (state.failures == 1 and is_repair(state, rules))
    return 0.0 if waited_for else rules.backoff.delay_s(state.failures)


def is_repair(state: State, rules: Rules) -> bool:
    """Whether what is started is a part of the pipeline, for which a ring waits."""
    return state.places != rules.places


def start_allowed_s(state: State, rules: Rules) -> float:
    """How long a start may take, in seconds."""
    return rules.start_timeout_s + (rules.recovery_s if is_repair(state, rules) else 0.0)


def _start(state: State, rules: Rules) -> Decision:
    started = replace(state, phase=Phase.STARTING, generation=state.generation + 1)
    return started, (Start(state.places), SetAlarm(start_allowed_s(started, rules)))


def _lost(state: State, lost: Lost, rules: Rules) -> Decision:
    if state.phase in (Phase.STARTING, Phase.READY, Phase.BROKEN):
        return _fail(state, lost, rules)
    if state.phase is Phase.DRAINING and (lost.cause.planned or _requests_wait_for(state, lost.places, rules)):
        again = End(lost.places), Start(lost.places)
        return replace(state, generation=state.generation + 1), (Report(lost.cause, 0.0), *again)
    if state.phase is Phase.DRAINING:  # no request can complete, and no new one is admitted
        ended, actions = _end(state, rules)
        return replace(ended, cause=lost.cause), (Report(lost.cause, None), *actions)
    return state, ()


def _requests_wait_for(state: State, lost: tuple[int, ...], rules: Rules) -> bool:
    """Whether the requests in progress continue once these places are restarted: the ring waits for them, and its head,
    which holds the requests, still runs. The time for draining bounds how often they may be lost."""
    return HEAD not in lost and restarted(state, lost, rules) == lost


def _fail(state: State, lost: Lost, rules: Rules) -> Decision:
    """End what is to be restarted, or give up. A place that was asked to leave is restarted alone: the ring has asked
    for it, so the ring was whole."""
    cause, failures = lost.cause, state.failures + (not lost.cause.planned)
    places = lost.places if cause.planned else restarted(state, lost.places, rules)
    failed = replace(state, phase=Phase.CLEARING, failures=failures, cause=cause, places=places)
    if (cause.own_reason and not state.ever_ready) or rules.backoff.is_exhausted(failures):
        return replace(failed, phase=Phase.ENDING, giving_up=True), (Report(cause, None), End(rules.places))
    return failed, (Report(cause, restart_delay_s(failed, rules)), End(places))


def _end(state: State, rules: Rules, *, at_once: bool = False) -> Decision:
    return replace(state, phase=Phase.ENDING), (End(rules.places, at_once),)


def _stop(state: State, rules: Rules) -> Decision:
    match state.phase:
        case Phase.NEW:
            return replace(state, phase=Phase.ENDED, cause=None), ()
        case Phase.READY:
            return replace(state, phase=Phase.DRAINING), (Drain(), SetAlarm(rules.drain_timeout_s))
        case Phase.STARTING | Phase.BROKEN | Phase.CLEARING | Phase.RESTING:
            return _end(state, rules)
        case Phase.DRAINING | Phase.ENDING:
            return _end(state, rules, at_once=True)
    return state, ()
