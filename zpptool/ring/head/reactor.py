# SPDX-License-Identifier: Apache-2.0
"""Carries out what follows from events at the head.

The invariant: only the head's receiving thread calls this, so the ring's state has one writer, and a loss that is
reported twice counts once. The decisions are `epochs.react`, a pure function; the effects are here.
"""

from __future__ import annotations

import threading

from zpptool.errors import ZppError, invalid_error
from zpptool.log import place_logger
from zpptool.places import HEAD
from zpptool.ring.head.call_sender import CallSender
from zpptool.ring.head.callbacks import HeadCallbacks
from zpptool.ring.head.epochs import (
    FIRST_EPOCH,
    Admit,
    Answered,
    BeginEpoch,
    CallTheRoll,
    Event,
    GiveUp,
    LetIn,
    Phase,
    begin,
    react,
)
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCalls, drop_calls
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.roster import Roster
from zpptool.ring.head.setup_log import SetupLog
from zpptool.ring.head.traced_sender import TracedCallSender
from zpptool.ring.head.watchdog import Watchdog
from zpptool.ring.messages import RollCall, StageFacts, Verdict
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkSender

_log = place_logger(__name__, HEAD)


class HeadReactor:
    """Holds the ring's state.

    Args:
        downstream: the link to stage 0; its epoch is the first one.
        sender: sends roll calls and verdicts.
        calls: those that are under way.
        setup_log: the set-up calls, which are repeated in each epoch.
        recoveries: the losses so far.
        roster: the admitted stages.
        watchdog: holds a suspected loss.
        events: a reported fault in it is a better explanation of an end than what was noticed here.
        callbacks: of the engine.
        timeouts: of the head.

    Attributes:
        state: the phase and the epoch of the ring.
        closing: set when the node closes; a fault after that is no news.
        changed: set whenever the ring has become whole or has broken.
    """

    def __init__(
        self,
        downstream: LinkSender,
        *,
        sender: CallSender | TracedCallSender,
        calls: PendingCalls,
        setup_log: SetupLog,
        recoveries: Recoveries,
        roster: Roster,
        watchdog: Watchdog,
        events: EventQueue,
        callbacks: HeadCallbacks,
        timeouts: RingTimeouts,
    ) -> None:
        self._downstream = downstream
        self._sender = sender
        self._calls = calls
        self._setup_log = setup_log
        self._recoveries = recoveries
        self._roster = roster
        self._watchdog = watchdog
        self._events = events
        self._callbacks = callbacks
        self._recovery_s = timeouts.recovery_s
        self.state = begin(downstream.party.epoch, may_recover=timeouts.survives_losses)
        self.closing = threading.Event()
        self.changed = threading.Event()

    @property
    def epoch(self) -> int:
        """The present epoch."""
        return self.state.epoch

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.state.phase is Phase.OVER

    @property
    def gathering(self) -> bool:
        """Whether the stages of the present epoch have yet to answer the roll call."""
        return self.state.phase is Phase.GATHERING

    def apply(self, event: Event) -> None:
        """Change the state by an event and do what follows from it."""
        self.state, action = react(self.state, event)
        match action:
            case BeginEpoch(epoch=epoch, why=why):
                self._begin_epoch(epoch, why)
            case CallTheRoll() if self.epoch > FIRST_EPOCH:  # `HeadNode.gather` calls the first one
                self._sender.send(RollCall(stages=()), epoch=self.epoch)
            case Admit():
                for method, payload in self._callbacks.amend_setup(self._roster.stages).items():
                    self._setup_log.amend(method, payload)
                self._sender.send(Verdict(reasons=()), epoch=self.epoch)
                self._setup_log.replay(self.epoch)
            case LetIn():
                self._let_calls_in()
            case GiveUp(why=why):
                self._give_up(why)

    def roll_call_answered(self, stages: tuple[StageFacts, ...], epoch: int) -> None:
        """The roll call of this epoch has come back with these stages: admit or refuse them."""
        if not self.gathering or epoch != self.epoch:
            return
        reasons = self._roster.reasons_to_refuse(stages)
        if reasons:
            self._sender.send(Verdict(reasons=tuple(reasons)), epoch=epoch)
            self.apply(Answered(epoch, invalid_error("the stages do not make one pipeline: " + "; ".join(reasons))))
            return
        self._recoveries.roll_answered(self._roster.stages, stages)
        self._roster.stages = stages
        self.apply(Answered(epoch, None))

    def _begin_epoch(self, epoch: int, why: ZppError) -> None:
        dropped = self._calls.suspend()
        self._downstream.begin(self._downstream.party.run_id, epoch)
        self._setup_log.suspend()
        drop_calls(dropped, epoch - 1, why.message)
        self._watchdog.forget_suspicion()
        cause = self._recoveries.lost(why)
        _log.info(
            f"epoch {epoch}: {cause}; waiting at most {self._recovery_s:g} s for the missing stages",
            extra={"epoch": epoch},
        )

    def _let_calls_in(self) -> None:
        summary = self._recoveries.whole(self.epoch, self._setup_log.count)
        self._calls.let_in(self.epoch)
        self.changed.set()
        if summary:
            _log.info(summary, extra={"epoch": self.epoch})

    def _give_up(self, fault: ZppError) -> None:
        reported = self._events.next_fault()
        if reported is not None:
            fault = reported.as_error()
        gathered = bool(self._roster.stages)
        if self.closing.is_set() or not self._setup_log.fail_all(fault):
            return
        self.changed.set()
        if gathered:
            self._callbacks.on_fault(fault)
