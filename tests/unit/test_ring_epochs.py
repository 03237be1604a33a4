# SPDX-License-Identifier: Apache-2.0
"""The epochs of a ring: every event in every state, and the protocol against links that delay and lose messages."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zpptool.errors import stage_error
from zpptool.ring.head.epochs import (
    Admit,
    Answered,
    BeginEpoch,
    CallTheRoll,
    Closed,
    Event,
    Failed,
    GiveUp,
    LetIn,
    Lost,
    Phase,
    Ready,
    RingState,
    Stopped,
    begin,
    react,
)

FAULT = stage_error("stage 1 was lost")
EPOCH = 3
EVENTS: list[Event] = [
    *(kind(epoch) for kind in (Closed, Ready) for epoch in (2, 3, 4)),
    *(Answered(epoch, fault) for epoch in (2, 3, 4) for fault in (None, FAULT)),
    *(Lost(epoch, FAULT) for epoch in (2, 3, 4)),
    Failed(FAULT),
    Stopped(),
]
STATES = [RingState(phase, EPOCH, may) for phase in Phase for may in (False, True)]


def expected(state: RingState, event: Event) -> tuple[RingState, object]:
    """The table of docs/recovery.md as code."""
    over = replace(state, phase=Phase.OVER)
    if state.phase is Phase.OVER:
        return state, None
    table: dict[tuple[Phase, Event], tuple[RingState, object]] = {
        (Phase.GATHERING, Closed(EPOCH)): (state, CallTheRoll()),
        (Phase.GATHERING, Answered(EPOCH, None)): (replace(state, phase=Phase.SETTING_UP), Admit()),
        (Phase.GATHERING, Answered(EPOCH, FAULT)): (over, GiveUp(FAULT)),
        (Phase.SETTING_UP, Ready(EPOCH)): (replace(state, phase=Phase.WHOLE), LetIn()),
    }
    for phase in (Phase.GATHERING, Phase.SETTING_UP, Phase.WHOLE):
        table[phase, Failed(FAULT)] = over, GiveUp(FAULT)
        table[phase, Stopped()] = over, None
        later = RingState(Phase.GATHERING, EPOCH + 1, True)
        table[phase, Lost(EPOCH, FAULT)] = (
            (later, BeginEpoch(EPOCH + 1, FAULT)) if state.may_recover else (over, GiveUp(FAULT))
        )
    return table.get((state.phase, event), (state, None))


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_every_event_in_every_state(state: RingState, event: Event) -> None:
    assert react(state, event) == expected(state, event)


def test_a_start_takes_the_same_steps_as_a_recovery() -> None:
    state = begin(may_recover=False)
    actions = []
    for event in (Closed(1), Answered(1, None), Ready(1)):
        state, action = react(state, event)
        actions.append(action)
    assert actions == [CallTheRoll(), Admit(), LetIn()]
    assert state.phase is Phase.WHOLE


STAGES = 3


class Epochs(RuleBasedStateMachine):
    """A ring of three stages. Links deliver messages after any delay, and lose all of them when a stage dies.

    A stage accepts a step's message only if it has the stage's own epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = begin(may_recover=True)
        self.epochs = [0] * STAGES
        self.alive = [True] * STAGES
        self.events: list[Event] = []
        self.under_way: list[tuple[int, int, int]] = []  # epoch, step, the next stage
        self.applied: list[set[tuple[int, int]]] = [set() for _ in range(STAGES)]
        self.next_step = 0

    def take(self, event: Event) -> None:
        before = self.state
        self.state, action = react(before, event)
        assert self.state.epoch >= before.epoch
        match action:
            case CallTheRoll():
                self.events.append(Answered(self.state.epoch, None))
            case Admit():
                self.events.append(Ready(self.state.epoch))

    @rule(stage=st.integers(0, STAGES - 1))
    def die(self, stage: int) -> None:
        if self.alive[stage]:
            self.alive[stage] = False
            self.under_way = [item for item in self.under_way if item[2] != stage]
            self.events.append(Lost(self.epochs[stage] or 1, FAULT))

    @rule(stage=st.integers(0, STAGES - 1))
    def restart(self, stage: int) -> None:
        if not self.alive[stage]:
            self.alive[stage], self.epochs[stage], self.applied[stage] = True, 0, set()

    @rule(stage=st.integers(0, STAGES - 1))
    def complete_handshake(self, stage: int) -> None:
        """A link takes over the epoch of its sending end when both of its ends run."""
        before = self.state.epoch if stage == 0 else self.epochs[stage - 1] if self.alive[stage - 1] else 0
        if self.alive[stage] and self.epochs[stage] < before:
            self.epochs[stage] = before
            if stage == STAGES - 1:
                self.events.append(Closed(before))

    @precondition(lambda self: self.events)
    @rule(data=st.data())
    def deliver_event(self, data: st.DataObject) -> None:
        """Events reach the head late, and in any order."""
        self.take(self.events.pop(data.draw(st.integers(0, len(self.events) - 1))))

    @precondition(lambda self: self.state.phase is Phase.WHOLE)
    @rule()
    def begin_a_step(self) -> None:
        self.under_way.append((self.state.epoch, self.next_step, 0))
        self.next_step += 1

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        epoch, step, stage = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if not self.alive[stage] or self.epochs[stage] != epoch:
            return  # dropped: it belongs to an epoch that is over
        assert (epoch, step) not in self.applied[stage]
        self.applied[stage].add((epoch, step))
        if stage + 1 < STAGES:
            self.under_way.append((epoch, step, stage + 1))

    @invariant()
    def no_stage_is_ahead_of_the_head(self) -> None:
        assert max(self.epochs) <= self.state.epoch

    @invariant()
    def whole_means_that_every_stage_runs_or_a_loss_is_about_to_be_reported(self) -> None:
        if self.state.phase is Phase.WHOLE:
            missing = [
                stage for stage in range(STAGES) if self.epochs[stage] != self.state.epoch or not self.alive[stage]
            ]
            reported = any(isinstance(event, Lost) and event.epoch == self.state.epoch for event in self.events)
            assert not missing or reported

    def teardown(self) -> None:
        """From any state the ring becomes whole if every stage runs long enough: there is no deadlock."""
        for stage in range(STAGES):
            if not self.alive[stage]:
                self.alive[stage], self.epochs[stage] = True, 0
        for _ in range(20):
            while self.events:
                self.take(self.events.pop(0))
            for stage in range(STAGES):
                before = self.state.epoch if stage == 0 else self.epochs[stage - 1]
                if self.epochs[stage] < before:
                    self.epochs[stage] = before
                    if stage == STAGES - 1:
                        self.events.append(Closed(before))
            if self.state.phase is Phase.WHOLE and not self.events:
                break
        assert self.state.phase is Phase.WHOLE


TestEpochs = Epochs.TestCase
