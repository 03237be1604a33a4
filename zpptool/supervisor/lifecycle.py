# SPDX-License-Identifier: Apache-2.0
r"""The life of a pipeline that is kept up, as a pure function: state and event give the next state and the actions.

    new -> starting -> ready -> draining -> ending -> ended
             ^   \      |                     ^
             |    \     v                     |
             |     `-> broken -> (given up) --|
             |           |                    |
          resting <-- clearing --(stopped)----'

Nothing here starts, waits or looks at a clock: `pipeline.supervisor` does what is decided here, and tells what happens.
What is ended in `clearing` and started after `resting` is what was lost, where the ring outlives that: the others stay
as they are, whatever the phase is called. There is one alarm; setting it again forgets the one before. An event that
means nothing in a state changes nothing. Actions name the places that they are about. Which places a loss costs is
decided by `restarted`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from zpptool.errors import ExitCode
from zpptool.places import HEAD


class Phase(StrEnum):
    """Where a pipeline stands."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    BROKEN = "broken"
    """A process has ended by itself; whose end is to blame is being found out."""
    CLEARING = "clearing"
    """What is to be started anew, all or a part, is being ended."""
    RESTING = "waiting to restart"
    DRAINING = "draining"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True)
class Cause:
    """Why a pipeline is not whole.

    Attributes:
        message: what happened to whom, one sentence.
        detail: more to read, such as the end of a log; None for nothing.
        exit_code: what it would make a command exit with.
        own_reason: the process ended with a reason of its own, which a second start would meet again.
        planned: it has left because it was asked to, and nothing has failed.
    """

    message: str
    detail: str | None = None
    exit_code: int = int(ExitCode.STAGE)
    own_reason: bool = False
    planned: bool = False


@dataclass(frozen=True)
class Rules:
    """What does not change in the life of a pipeline; times in seconds.

    Attributes:
        places: all of them: `HEAD`, and the numbers of its stages.
        recovery_s: how long the ring waits for what it has lost, so that this alone has to be started again; 0 where
            the ring does not outlive a loss.
        max_restarts: how many starts in a row may fail after the first.
        first_rest_s: how long to wait before the first restart; doubled for each that follows.
        longest_rest_s: the longest such wait.
        stable_s: a pipeline that has been whole for so long has its failures forgotten; one that was mended, at once.
        start_timeout_s: how long a start may take. A mend may take `recovery_s` more: its ring gives up before that.
        drain_timeout_s: how long answers under way are waited for when the pipeline is to stop.
    """

    places: tuple[int, ...]
    recovery_s: float = 0.0
    max_restarts: int = 5
    first_rest_s: float = 1.0
    longest_rest_s: float = 30.0
    stable_s: float = 60.0
    start_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0

    @property
    def recovers(self) -> bool:
        """Whether the ring outlives the loss of a stage."""
        return self.recovery_s > 0

    def rest_s(self, failures: int) -> float:
        """The wait after that many failures in a row, at least one."""
        doubled: float = self.first_rest_s * 2 ** min(failures - 1, 32)
        return min(doubled, self.longest_rest_s)


@dataclass(frozen=True)
class State:
    """Where a pipeline stands, and what of its past still matters.

    Attributes:
        phase: where it stands.
        epoch: how many times it, or a part of it, was started.
        failures: how many starts or runs have failed in a row.
        ever_ready: whether it has been whole since the command began.
        cause: why it is not whole; in `ENDED` why it was given up, None where it was told to stop.
        giving_up: what is being ended will not be started again, because of `cause`.
        places: what is started next, or was started last.
    """

    phase: Phase = Phase.NEW
    epoch: int = 0
    failures: int = 0
    ever_ready: bool = False
    cause: Cause | None = None
    giving_up: bool = False
    places: tuple[int, ...] = ()


class Event(StrEnum):
    """What can happen, beside a `Lost`."""

    BEGIN = "begin"
    WHOLE = "a token has gone round"
    BREAK = "a process has ended by itself"
    ALARM = "the alarm has gone off"
    GONE = "every process has ended"
    STOP = "told to stop"
    DRAINED = "no request is under way"


@dataclass(frozen=True)
class Lost:
    """Why processes of the pipeline have ended by themselves, once that is known, and of which places they were."""

    cause: Cause
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Start:
    """Start the processes of these places."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class End:
    """End the processes of these places, and tell when they are gone; `at_once` without a grace."""

    places: tuple[int, ...]
    at_once: bool = False


@dataclass(frozen=True)
class SetAlarm:
    """Tell when so much time has passed."""

    after_s: float


@dataclass(frozen=True)
class Report:
    """Tell the user what was lost. `rest_s` is how long it is until the next start; None if there is none."""

    cause: Cause
    rest_s: float | None


@dataclass(frozen=True)
class Drain:
    """Let no new request in, and tell when none is under way."""


Action = Start | End | SetAlarm | Report | Drain
Decision = tuple[State, tuple[Action, ...]]


def decide(state: State, event: Event | Lost, rules: Rules) -> Decision:
    """What follows from an event in a state."""
    if isinstance(event, Lost):
        return _lost(state, event, rules)
    match state.phase, event:
        case Phase.NEW, Event.BEGIN:
            return _start(replace(state, places=rules.places), rules)
        case Phase.STARTING, Event.WHOLE:
            failures = 0 if is_mend(state, rules) else state.failures
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
        case Phase.CLEARING, Event.GONE:
            return replace(state, phase=Phase.RESTING), (SetAlarm(rest_s(state, rules)),)
        case Phase.DRAINING, Event.DRAINED | Event.ALARM:
            return _end(state, rules)
        case Phase.ENDING, Event.GONE:
            return replace(state, phase=Phase.ENDED, cause=state.cause if state.giving_up else None), ()
        case _, Event.STOP:
            return _stop(state, rules)
    return state, ()


def restarted(state: State, lost: tuple[int, ...], rules: Rules) -> tuple[int, ...]:
    """Which places are ended, and started again, when those were lost. This is the only place that decides it.

    Everything; but where the ring recovers and has been whole once, only what was lost: stages that stay keep their
    weights, the requests of those that are lost are computed again, and a new head is served by the old stages.
    """
    alone = rules.recovers and state.ever_ready and lost
    return lost if alone else rules.places


def rest_s(state: State, rules: Rules) -> float:
    """How long to wait before what was lost is started again: not at all where a ring waits for it the first time, or
    has asked it to leave."""
    planned = state.cause is not None and state.cause.planned
    waited_for = planned or (state.failures == 1 and is_mend(state, rules))
    return 0.0 if waited_for else rules.rest_s(state.failures)


def is_mend(state: State, rules: Rules) -> bool:
    """Whether what is started is a part, which a ring waits for."""
    return state.places != rules.places


def start_allowed_s(state: State, rules: Rules) -> float:
    """How long a start may take."""
    return rules.start_timeout_s + (rules.recovery_s if is_mend(state, rules) else 0.0)


def _start(state: State, rules: Rules) -> Decision:
    started = replace(state, phase=Phase.STARTING, epoch=state.epoch + 1)
    return started, (Start(state.places), SetAlarm(start_allowed_s(started, rules)))


def _lost(state: State, lost: Lost, rules: Rules) -> Decision:
    if state.phase in (Phase.STARTING, Phase.READY, Phase.BROKEN):
        return _fail(state, lost, rules)
    if state.phase is Phase.DRAINING and (lost.cause.planned or _answers_wait_for(state, lost.places, rules)):
        again = End(lost.places), Start(lost.places)
        return replace(state, epoch=state.epoch + 1), (Report(lost.cause, 0.0), *again)
    if state.phase is Phase.DRAINING:  # no answer can come any more, and none is begun
        ended, actions = _end(state, rules)
        return replace(ended, cause=lost.cause), (Report(lost.cause, None), *actions)
    return state, ()


def _answers_wait_for(state: State, lost: tuple[int, ...], rules: Rules) -> bool:
    """Whether the answers under way go on once these places are there again: the ring waits for them, and its head,
    which has the answers, stands. How often they may be lost while it drains is bounded by the time for draining."""
    return HEAD not in lost and restarted(state, lost, rules) == lost


def _fail(state: State, lost: Lost, rules: Rules) -> Decision:
    """End what is to be started again; then start it, unless it is hopeless. What was asked to leave comes again alone:
    the ring has asked for it, so it was whole."""
    cause, failures = lost.cause, state.failures + (not lost.cause.planned)
    places = lost.places if cause.planned else restarted(state, lost.places, rules)
    failed = replace(state, phase=Phase.CLEARING, failures=failures, cause=cause, places=places)
    if (cause.own_reason and not state.ever_ready) or failures > rules.max_restarts:
        return replace(failed, phase=Phase.ENDING, giving_up=True), (Report(cause, None), End(rules.places))
    return failed, (Report(cause, rest_s(failed, rules)), End(places))


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
