# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a pipeline, without one: every event in every state, and what holds on every path through them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.places import HEAD
from zpptool.supervisor.backoff import Backoff
from zpptool.supervisor.lifecycle import (
    Action,
    Cause,
    Drain,
    End,
    Event,
    Lost,
    Phase,
    Report,
    Rules,
    SetAlarm,
    Start,
    State,
    decide,
)

RULES = Rules(places=(HEAD, 0, 1, 2), backoff=Backoff(max_failures=3, first_s=1, longest_s=3))
KILLED = Cause("stage 1 was killed by SIGKILL")
LEFT = Cause("stage 1 has left, as it was asked to", planned=True)
REFUSED = Cause("stage 1 exited with code 3", exit_code=3, own_reason=True)
SAME = None
ALL = RULES.places

# For each state, what each event leads to; whatever is not here changes nothing.
TABLE: dict[tuple[Phase, Event | type[Lost]], tuple[Phase, tuple[type[Action], ...]]] = {
    (Phase.NEW, Event.BEGIN): (Phase.STARTING, (Start, SetAlarm)),
    (Phase.NEW, Event.STOP): (Phase.ENDED, ()),
    (Phase.STARTING, Event.WHOLE): (Phase.READY, (SetAlarm,)),
    (Phase.STARTING, Event.BREAK): (Phase.BROKEN, ()),
    (Phase.STARTING, Event.ALARM): (Phase.CLEARING, (Report, End)),
    (Phase.STARTING, Event.STOP): (Phase.ENDING, (End,)),
    (Phase.STARTING, Lost): (Phase.CLEARING, (Report, End)),
    (Phase.READY, Event.BREAK): (Phase.BROKEN, ()),
    (Phase.READY, Event.ALARM): (Phase.READY, ()),
    (Phase.READY, Event.STOP): (Phase.DRAINING, (Drain, SetAlarm)),
    (Phase.READY, Lost): (Phase.CLEARING, (Report, End)),
    (Phase.BROKEN, Event.STOP): (Phase.ENDING, (End,)),
    (Phase.BROKEN, Lost): (Phase.CLEARING, (Report, End)),
    (Phase.CLEARING, Event.CLEARED): (Phase.RESTING, (SetAlarm,)),
    (Phase.CLEARING, Event.STOP): (Phase.ENDING, (End,)),
    (Phase.RESTING, Event.ALARM): (Phase.STARTING, (Start, SetAlarm)),
    (Phase.RESTING, Event.STOP): (Phase.ENDING, (End,)),
    (Phase.DRAINING, Event.DRAINED): (Phase.ENDING, (End,)),
    (Phase.DRAINING, Event.ALARM): (Phase.ENDING, (End,)),
    (Phase.DRAINING, Event.STOP): (Phase.ENDING, (End,)),
    (Phase.DRAINING, Lost): (Phase.ENDING, (Report, End)),
    (Phase.ENDING, Event.CLEARED): (Phase.ENDED, ()),
    (Phase.ENDING, Event.STOP): (Phase.ENDING, (End,)),
}


def state_in(phase: Phase) -> State:
    """A state that a pipeline can be in, at its first generation."""
    if phase is Phase.NEW:
        return State()
    failures = 1 if phase in (Phase.CLEARING, Phase.RESTING) else 0
    ready = phase in (Phase.READY, Phase.DRAINING)
    cause = KILLED if failures else None
    return State(phase, generation=1, failures=failures, ever_ready=ready, cause=cause, places=ALL)


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, [*Event, Lost(KILLED)])), ids=str)
def test_every_event_in_every_state(phase: Phase, event: Event | Lost) -> None:
    before = state_in(phase)
    after, actions = decide(before, event, RULES)
    key = (phase, event if isinstance(event, Event) else Lost)
    if key not in TABLE:
        assert (after, actions) == (before, ())
        return
    wanted, kinds = TABLE[key]
    assert after.phase is wanted
    assert tuple(type(action) for action in actions) == kinds
    for action in actions:
        if isinstance(action, Start | End):
            assert action.places == ALL


def run(*events: Event | Lost, rules: Rules = RULES) -> tuple[State, list[Action]]:
    """The state of a pipeline after these events, and all actions that they led to."""
    state, done = State(), []
    for event in events:
        state, actions = decide(state, event, rules)
        done += actions
    return state, done


UP = (Event.BEGIN, Event.WHOLE)
AGAIN = (Event.BREAK, Lost(KILLED), Event.CLEARED, Event.ALARM)


def test_a_pipeline_that_loses_a_stage_is_restarted_after_a_delay() -> None:
    state, done = run(*UP, *AGAIN)
    assert (state.phase, state.generation, state.failures, state.cause) == (Phase.STARTING, 2, 1, KILLED)
    assert done == [
        Start(ALL), SetAlarm(600), SetAlarm(60), Report(KILLED, 1), End(ALL), SetAlarm(1), Start(ALL), SetAlarm(600)
    ]  # fmt: skip


def test_a_crash_loop_is_given_up_with_its_cause() -> None:
    state, done = run(*UP, *AGAIN, *AGAIN, Event.BREAK, Lost(KILLED))
    assert (state.phase, state.giving_up, state.generation, state.failures) == (Phase.ENDING, True, 3, 3)
    assert done[-2:] == [Report(KILLED, None), End(ALL)]
    state, _ = decide(state, Event.CLEARED, RULES)
    assert (state.phase, state.cause) == (Phase.ENDED, KILLED)


def test_failures_before_a_long_time_of_being_whole_do_not_count() -> None:
    steady = (*AGAIN, Event.WHOLE, Event.ALARM)
    state, _ = run(*UP, *steady * 10)
    assert (state.phase, state.generation, state.failures) == (Phase.READY, 11, 0)


def test_a_first_start_that_fails_for_a_reason_of_its_own_is_not_repeated() -> None:
    state, done = run(Event.BEGIN, Event.BREAK, Lost(REFUSED), Event.CLEARED)
    assert (state.phase, state.cause, state.generation) == (Phase.ENDED, REFUSED, 1)
    assert Report(REFUSED, None) in done


def test_the_same_reason_is_retried_later() -> None:
    state, _ = run(*UP, Event.BREAK, Lost(REFUSED), Event.CLEARED, Event.ALARM)
    assert (state.phase, state.generation) == (Phase.STARTING, 2)


def test_a_start_that_takes_too_long_is_a_failure() -> None:
    state, done = run(Event.BEGIN, Event.ALARM)
    assert state.cause is not None
    assert "not become ready in 600 s" in state.cause.message
    assert done[-1] == End(ALL)


def test_a_stop_drains_and_a_second_one_does_not_wait() -> None:
    assert run(*UP, Event.STOP)[1][-2:] == [Drain(), SetAlarm(30)]
    assert run(*UP, Event.STOP, Event.STOP)[1][-1] == End(ALL, at_once=True)
    assert run(*UP, Event.STOP, Event.DRAINED)[1][-1] == End(ALL)
    assert run(*UP, Event.STOP, Event.ALARM, Event.CLEARED)[0].phase is Phase.ENDED


def test_a_stop_is_no_failure_even_after_failures() -> None:
    state, _ = run(*UP, Event.BREAK, Lost(KILLED), Event.STOP, Event.CLEARED)
    assert (state.phase, state.cause) == (Phase.ENDED, None)


RECOVERING = replace(RULES, recovery_s=120)
"""Of a ring that recovers from the loss of a stage."""


@pytest.mark.parametrize("lost", [(1,), (HEAD,), (HEAD, 0), (0, 1, 2)])
def test_where_the_ring_recovers_only_what_was_lost_is_restarted_and_at_once(lost: tuple[int, ...]) -> None:
    state, done = run(*UP, Event.BREAK, Lost(KILLED, lost), Event.CLEARED, Event.ALARM, rules=RECOVERING)
    assert (state.phase, state.generation, state.places) == (Phase.STARTING, 2, lost)
    assert done[-5:] == [Report(KILLED, 0), End(lost), SetAlarm(0), Start(lost), SetAlarm(720)]
    assert decide(state, Event.STOP, RECOVERING)[1] == (End(ALL),)


def test_what_is_lost_during_a_repair_is_restarted_too_after_a_delay() -> None:
    repairing = (*UP, Event.BREAK, Lost(KILLED, (1,)), Event.CLEARED, Event.ALARM)
    _, done = run(*repairing, Event.BREAK, Lost(KILLED, (2,)), Event.CLEARED, Event.ALARM, rules=RECOVERING)
    assert done[-5:] == [Report(KILLED, 2), End((2,)), SetAlarm(2), Start((2,)), SetAlarm(720)]


@pytest.mark.parametrize(("before", "lost"), [(UP, ()), ((Event.BEGIN,), (1,))], ids=["unknown", "before it was whole"])
def test_the_whole_pipeline_is_restarted(before: tuple[Event | Lost, ...], lost: tuple[int, ...]) -> None:
    _, done = run(*before, Event.BREAK, Lost(KILLED, lost), rules=RECOVERING)
    assert done[-1] == End(ALL)


def test_a_stage_that_never_loads_is_given_up_and_one_that_does_is_not() -> None:
    lost = (Event.BREAK, Lost(KILLED, (1,)), Event.CLEARED, Event.ALARM)
    state, done = run(*UP, *lost * 2, Event.BREAK, Lost(KILLED, (1,)), rules=RECOVERING)
    assert (state.phase, done[-2:]) == (Phase.ENDING, [Report(KILLED, None), End(ALL)])
    state, _ = run(*UP, *(*lost, Event.WHOLE) * 30, rules=RECOVERING)
    assert (state.phase, state.failures, state.cause) == (Phase.READY, 0, None)


def test_failures_before_a_completed_repair_do_not_count() -> None:
    once = (Event.BREAK, Lost(KILLED, (0,)), Event.CLEARED, Event.ALARM, Event.WHOLE)
    state, done = run(*UP, *once, *once, rules=RECOVERING)
    assert (state.phase, state.generation) == (Phase.READY, 3)
    assert [action for action in done if isinstance(action, Start)] == [Start(ALL), Start((0,)), Start((0,))]


def test_failures_before_a_start_of_the_whole_pipeline_count_where_the_ring_recovers_too() -> None:
    state, _ = run(*UP, *(*AGAIN, Event.WHOLE) * 2, Event.BREAK, Lost(KILLED), rules=RECOVERING)
    assert (state.phase, state.giving_up) == (Phase.ENDING, True)


def test_a_repair_may_take_as_long_as_its_ring_waits_and_then_all_is_restarted() -> None:
    late = (*UP, Event.BREAK, Lost(KILLED, (1,)), Event.CLEARED, Event.ALARM, Event.ALARM)
    state, done = run(*late, rules=RECOVERING)
    assert state.cause is not None
    assert "not become ready in 720 s" in state.cause.message
    assert done[-1] == End(ALL)


@pytest.mark.parametrize("phase", list(Phase), ids=str)
def test_a_stage_that_was_asked_to_leave_is_restarted_alone_and_nothing_has_failed(phase: Phase) -> None:
    """Also before the first token, and while requests in progress are waited for."""
    before = state_in(phase)
    after, done = decide(before, Lost(LEFT, (1,)), RULES)
    assert after.failures == before.failures
    match phase:
        case Phase.STARTING | Phase.READY | Phase.BROKEN:
            assert (after.phase, after.places, done) == (Phase.CLEARING, (1,), (Report(LEFT, 0.0), End((1,))))
            assert decide(after, Event.CLEARED, RULES)[1] == (SetAlarm(0.0),)
        case Phase.DRAINING:
            assert (after.phase, done) == (Phase.DRAINING, (Report(LEFT, 0.0), End((1,)), Start((1,))))
        case _:
            assert (after, done) == (before, ())


def test_requests_in_progress_at_the_end_survive_the_loss_of_a_stage_but_not_of_the_head() -> None:
    draining, _ = run(*UP, Event.STOP, rules=RECOVERING)
    after, done = decide(draining, Lost(KILLED, (0, 2)), RECOVERING)
    assert (after.phase, after.generation, done) == (
        Phase.DRAINING, 2, (Report(KILLED, 0.0), End((0, 2)), Start((0, 2)))
    )  # fmt: skip
    whole = [((HEAD,), RECOVERING), ((HEAD, 1), RECOVERING), ((), RECOVERING), (ALL, RECOVERING), ((1,), RULES)]
    for lost, rules in whole:
        after, done = decide(draining, Lost(KILLED, lost), rules)
        assert (after.phase, done) == (Phase.ENDING, (Report(KILLED, None), End(ALL)))


def test_stages_may_be_asked_to_leave_any_number_of_times() -> None:
    once = (Event.BREAK, Lost(LEFT, (1,)), Event.CLEARED, Event.ALARM)
    state, done = run(*UP, *once * 100, Event.WHOLE, rules=RECOVERING)
    assert (state.phase, state.failures, state.cause) == (Phase.READY, 0, None)
    assert done.count(Start((1,))) == 100


EVENTS = st.sampled_from(
    [*Event, Lost(LEFT, (1,)), Lost(KILLED), Lost(REFUSED), Lost(KILLED, (1,)), Lost(KILLED, (HEAD, 2))]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=60), st.sampled_from([RULES, RECOVERING]))
def test_any_sequence_of_events_keeps_the_invariants(events: list[Event | Lost], rules: Rules) -> None:
    """No place is started that runs already, or omitted; nothing is started that is not ended before the end; `ENDED`
    is final; a state that waits for time has set its alarm."""
    state, alarm = State(), False
    running: set[int] = set()
    for event in events:
        before = state
        state, actions = decide(state, event, rules)
        alarm = alarm and state.phase is before.phase and event is not Event.ALARM
        for action in actions:
            if isinstance(action, Start):
                assert running.isdisjoint(action.places)
                running |= set(action.places)
            if isinstance(action, End):
                running -= set(action.places)
            alarm = alarm or isinstance(action, SetAlarm)
        assert state.generation - before.generation in (0, 1)
        assert state.failures <= rules.backoff.max_failures
        if before.phase is Phase.ENDED:
            assert (state, actions) == (before, ())
        if state.phase in (Phase.NEW, Phase.ENDING, Phase.ENDED):
            assert not running
        if state.phase in (Phase.RESTING, Phase.CLEARING):
            assert running == set(ALL) - set(state.places)
        if state.phase in (Phase.STARTING, Phase.READY, Phase.BROKEN, Phase.DRAINING):
            assert running == set(ALL)
        if state.phase is Phase.RESTING and before.phase is not Phase.RESTING:
            assert alarm
        if state.phase in (Phase.STARTING, Phase.DRAINING) and before.phase is not state.phase:
            assert alarm


@pytest.mark.parametrize("phase", list(Phase))
def test_two_stops_and_the_end_of_all_processes_end_it_in_every_phase(phase: Phase) -> None:
    state = replace(state_in(phase))
    for event in (Event.STOP, Event.STOP, Event.CLEARED):
        state, _ = decide(state, event, RULES)
    assert state.phase is Phase.ENDED
