# SPDX-License-Identifier: Apache-2.0
"""The receiving half of the head's place: the thread that takes what comes, and does what follows from it.

The invariant: only this thread asks `lifecycle.react` what follows from what has happened, and does it; others tell it
(`_happen`). So the ring's state has one writer, and a loss that is told twice is one loss.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress

import msgspec

from zpptool.errors import ExitCode, ZppError, invalid_error, stage_error
from zpptool.ring import messages as c
from zpptool.ring.delivery import POLL_S, Delivery
from zpptool.ring.head import epochs as lc
from zpptool.ring.head.pending_calls import OpenCall, OpenCalls, drop
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.roll_call import disagreements
from zpptool.ring.head.setup_log import SetUps
from zpptool.ring.head.view import RingView
from zpptool.ring.heartbeat import Beat
from zpptool.ring.status import RingStatus, hung
from zpptool.wire.link import LinkReceiver, LinkSender, LinkTimeout
from zpptool.wire.link_errors import PeerLost, StaleEpoch, WireError
from zpptool.wire.message.framing import HEAD, Kind
from zpptool.wire.protocol.sequence import SequenceError

CAUSE_S = 0.6
"""How long the head, when stage 0 has gone, waits for word of what made it go: a stage ends because of another one."""


class HeadListener:
    """The head's two links, the calls that are open, and the thread that takes the replies.

    Args:
        num_stages: how many stages the ring has.
        num_layers: how many layers the model has.
        outward: sends to stage 0.
        homeward: receives from the last stage.
        start_timeout_s: how long the roll call may take to come round.
        step_timeout_s: how long a call may take, unless it says otherwise.
        note: is told, in words, what the head waits for.
        beat_timeout_s: how long a stage may stand still at a step, or be silent, before it is taken to hang.
        recovery_s: how long a lost stage may take to come back; 0 where a loss breaks the pipeline.
    """

    def __init__(
        self,
        num_stages: int,
        num_layers: int,
        outward: LinkSender,
        homeward: LinkReceiver,
        *,
        start_timeout_s: float,
        step_timeout_s: float,
        note: Callable[[str], None],
        beat_timeout_s: float = 60.0,
        recovery_s: float = 0.0,
    ) -> None:
        self._num_stages = num_stages
        self._beat_timeout_s = beat_timeout_s
        self._view = RingView(num_stages, outward)
        self._beat = Beat(outward.ping, "head-beat")
        self._beat.start()
        self._num_layers = num_layers
        self._outward = outward
        self._outbox = Delivery(outward, self._raise_if_broken)
        self._homeward = homeward
        self._start_timeout_s = start_timeout_s
        self._step_timeout_s = step_timeout_s
        self._note = note
        self._recovery_s = recovery_s
        self._state = lc.begin(outward.party.epoch, may_recover=recovery_s > 0)
        self._calls = OpenCalls()
        self._setups = SetUps(self._calls, self._ask, self._happen)
        self._recoveries = Recoveries(recovery_s)
        self._agreed: Mapping[str, str] = {}
        self._gathered: tuple[c.StageFacts, ...] = ()
        self._suspected: tuple[ZppError, float] | None = None
        self._whole_at = 0.0
        self._closing = threading.Event()
        self._moved = threading.Event()
        self._stopping = False
        self._news: queue.SimpleQueue[lc.Event] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[c.Fault] = queue.SimpleQueue()
        outward.on_told(self._hear_told)
        outward.on_lost(homeward.interrupt)
        homeward.on_welcome(lambda _run, epoch: self._happen(lc.Closed(epoch)))
        self._on_fault: Callable[[ZppError], None] = lambda _fault: None
        self._on_moved: Callable[[str], None] = lambda _address: None
        self._on_admit: Callable[[tuple[c.StageFacts, ...]], Mapping[str, bytes]] = lambda _stages: {}
        self._thread = threading.Thread(target=self._serve, name="head-receive", daemon=True)

    @property
    def fault(self) -> ZppError | None:
        """What broke the pipeline, or None."""
        return self._calls.fault

    @property
    def whole(self) -> int | None:
        """The epoch in which the ring is whole; None while it is not."""
        return self._calls.whole

    def status(self) -> RingStatus:
        """How the ring fares, as far as it was heard."""
        told = self._view.status(
            gathered=bool(self._gathered),
            busy=self._calls.busy,
            stopped=self._stopping,
            fault=self.fault.message if self.fault else "",
        )
        return self._recoveries.told_in(told, recovering=self._recoveries.under_way and self.fault is None)

    def _ask(
        self,
        call: OpenCall,
        payload: bytes,
        setup: int | None = None,
        setting_up: int | None = None,
        only_in: int | None = None,
    ) -> Future[list[bytes]]:
        """Send a call: see `OpenCalls.enter`."""
        call.future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: only this node settles it
        try:
            number, entered = self._calls.enter(call, setting_up=setting_up, only_in=only_in)
        except ZppError as fault:
            call.future.set_exception(fault)
            return call.future
        asked = c.Call(number=number, method=call.method, from_all=call.wanted > 1, long=call.long, setup=setup)
        try:
            self._say(asked, payload, epoch=entered)
        except StaleEpoch as over:
            self._calls.fail(number, over)
        except PeerLost as lost:
            self._suspect(lost, entered)
        except ZppError as fault:
            self._happen(lc.Failed(fault))
        return call.future

    def _say(self, control: c.Control, payload: bytes = b"", *, epoch: int, timeout_s: float | None = None) -> None:
        frames = (payload,) if payload else ()
        timeout_s = timeout_s or self._step_timeout_s
        self._outbox.send(Kind.CONTROL, c.encode(control), frames, source=HEAD, epoch=epoch, timeout_s=timeout_s)

    def _raise_if_broken(self) -> None:
        if self.fault is not None:
            raise self.fault

    def _happen(self, event: lc.Event) -> None:
        """Tell the receiving thread. Never waits."""
        self._news.put(event)
        self._homeward.interrupt()

    def _react(self, event: lc.Event) -> None:
        """Do what follows from an event."""
        before = self._state
        self._state, action = lc.react(before, event)
        match action:
            case lc.BeginEpoch(epoch=epoch, why=why):
                self._begin(epoch, why)
            case lc.CallTheRoll() if self._state.epoch > lc.FIRST_EPOCH:  # the first is called without waiting
                self._say(c.RollCall(stages=()), epoch=self._state.epoch)
            case lc.Admit():
                for method, payload in self._on_admit(self._gathered).items():
                    self._setups.amend(method, payload)
                self._say(c.Verdict(reasons=()), epoch=self._state.epoch)
                self._setups.admit(self._state.epoch)
            case lc.LetIn():
                self._let_in()
            case lc.GiveUp(why=why):
                self._give_up(why)

    def _begin(self, epoch: int, why: ZppError) -> None:
        calls = self._calls.shut()
        self._outward.begin(self._outward.party.run_id, epoch)
        self._setups.shut()
        drop(calls, epoch - 1, why.message)
        self._suspected = None
        told = self._recoveries.lost(why)
        self._note(f"epoch {epoch}: {told}; waiting {self._recovery_s:g} s at most for who is missing")

    def _let_in(self) -> None:
        told = self._recoveries.whole(self._state.epoch, self._setups.count)
        self._whole_at = time.monotonic()
        self._calls.let_in(self._state.epoch)
        self._moved.set()
        if told:
            self._note(told)

    def _give_up(self, fault: ZppError) -> None:
        with suppress(queue.Empty):
            fault = self._told.get_nowait().as_error()
        gathered = bool(self._gathered)
        if self._closing.is_set() or not self._setups.break_all(fault):
            return
        self._moved.set()
        if gathered:
            self._on_fault(fault)

    def _answered(self, stages: tuple[c.StageFacts, ...], epoch: int) -> None:
        """The roll call has come home."""
        if self._state.phase is not lc.Phase.GATHERING or epoch != self._state.epoch:
            return
        reasons = disagreements(self._num_stages, self._num_layers, self._agreed, stages)
        if reasons:
            self._say(c.Verdict(reasons=tuple(reasons)), epoch=epoch)
            self._react(lc.Answered(epoch, invalid_error("the stages do not make one pipeline: " + "; ".join(reasons))))
            return
        self._recoveries.answered(self._gathered, stages)
        self._gathered = stages
        self._react(lc.Answered(epoch, None))

    def _receive(self, timeout_s: float) -> c.Received:
        message = self._homeward.recv(timeout_s)
        return c.decode(
            message.header,
            message.frames,
            stage=HEAD,
            peer=self._homeward.peer,
            endpoint=self._homeward.endpoint,
            epoch=message.epoch,
        )

    def _roll_call_is_late(self) -> ZppError:
        return stage_error(
            f"the roll call has not come round in {self._start_timeout_s:g} s: it left for stage 0 and nothing came"
            f" back from {self._homeward.peer} at {self._homeward.endpoint}",
            "Each stage prints what it waits for: look at the first one that waits for its neighbour.",
        )

    def _serve(self) -> None:
        while not self._closing.is_set() and self._state.phase is not lc.Phase.OVER:
            try:
                if self._serve_once():
                    return
            except (StaleEpoch, LinkTimeout):  # what had come was no message, or is none any more
                continue
            except (PeerLost, SequenceError, WireError) as fault:
                if self._stopping:
                    return
                self._happen(lc.Lost(self._state.epoch if fault.epoch is None else fault.epoch, fault))
            except ZppError as fault:
                self._happen(lc.Failed(fault))
            except Exception as cause:  # whatever it is, nobody may go on waiting for this thread
                told = f"the head cannot receive any more: {type(cause).__name__}: {cause}"
                self._happen(lc.Failed(stage_error(told)))

    def _serve_once(self) -> bool:
        """Take in what has happened and what has come; whether the stop has come home."""
        while True:
            try:
                self._react(self._news.get_nowait())
            except queue.Empty:
                break
        if self._state.phase is lc.Phase.OVER:
            return True
        self._check_deadlines()
        self._check_beats()
        self._look_outward()
        if self._homeward.poll(POLL_S):
            received = self._receive(POLL_S)
            if isinstance(received.control, c.Stop):
                return True
            self._take(received)
        return False

    def _hear_told(self, payload: bytes) -> None:
        """Take in what a stage tells against the direction of the ring; called where nothing may wait."""
        try:
            told = c.decode_told(payload)
        except msgspec.DecodeError as cause:
            self._note(f"{self._outward.peer} told something that cannot be read ({cause})")
            return
        if isinstance(told, c.Report):
            self._view.hear(told.stages)
        elif isinstance(told, c.Fault):
            self._told.put(told)
            self._homeward.interrupt()

    def _look_outward(self) -> None:
        """Take in what a stage told, or else, a moment later, that stage 0 has gone: the first is the cause of the
        second, and may still be on its way."""
        if self._stopping:
            return
        with suppress(queue.Empty):
            self._hear_fault(self._told.get_nowait())
        try:
            self._outward.check()
        except PeerLost as fault:
            self._suspect(fault, self._state.epoch if fault.epoch is None else fault.epoch)
        suspected = self._suspected
        if suspected is not None and suspected[1] < time.monotonic():
            self._react(lc.Lost(self._state.epoch, suspected[0]))

    def _suspect(self, fault: PeerLost, epoch: int) -> None:
        """Stage 0 has gone. Where that breaks the pipeline, what is heard next may say why."""
        if self._recovery_s:
            self._happen(lc.Lost(epoch, fault))
        elif self._suspected is None:
            self._suspected = fault, time.monotonic() + CAUSE_S

    def _hear_fault(self, fault: c.Fault) -> None:
        """A stage cannot go on."""
        if fault.lost is not None and fault.code in (ExitCode.STAGE, ExitCode.FAILURE):
            self._react(lc.Lost(fault.lost, fault.as_error()))
        else:
            self._react(lc.Failed(fault.as_error()))

    def _follow(self, address: str) -> None:
        """Receive from where the place of the last stage is from now on."""
        self._note(f"{self._homeward.peer} has moved to {address}")
        try:
            self._homeward.move(address)
        except ZppError as fault:
            self._note(f"it cannot be followed there: {fault.message}")
            return
        self._on_moved(address)

    def _take(self, received: c.Received) -> None:
        if isinstance(received.control, c.Moved):  # said in the epoch that ends with it
            self._follow(received.control.address)
        if received.epoch != self._state.epoch:
            return
        match received.control:
            case c.RollCall(stages=stages):
                self._answered(stages, received.epoch)
            case c.Reply(number=number, stage=stage):
                if self._calls.settle(number, stage, received.payload):
                    self._recoveries.has_answered(self._state.epoch)
            case c.Fault(number=None) as fault:
                self._hear_fault(fault)
            case c.Fault(number=int(number)) as fault:
                if not self._calls.fail(number, fault.as_error()):
                    self._note(f"too late to change the answer: {fault.message}")

    def _check_deadlines(self) -> None:
        late = self._calls.late()
        if late is not None:
            awaited = range(self._num_stages) if late.wanted > 1 else [self._num_stages - 1]
            silent = ", ".join(str(stage) for stage in awaited if stage not in late.payloads)
            raise stage_error(
                f"{late.method} was not answered in {late.allowed_s:g} s by stage {silent}",
                "See its log, and those of the stages before it: one of them is busy, stopped or hung.",
            )
        if self._state.phase is lc.Phase.GATHERING:
            fault = self._recoveries.too_late(self._view.stages())
            if fault is not None:
                raise fault

    def _check_beats(self) -> None:
        """Whether a stage stands still while a step is open."""
        steps = self._calls.steps()
        if not steps:
            self._view.rest()
            return
        if time.monotonic() - self._whole_at < self._beat_timeout_s:
            return  # what was last heard before the ring was whole says nothing
        still = hung(self._view.stages(), self._beat_timeout_s)
        if still is not None:
            what = f"has not moved for {still.beat_age_s:.1f} s" if still.beat_age_s else "is silent"
            fault = stage_error(
                f"stage {still.stage} hangs ({still.process}): its main loop {what}, last heard"
                f" {still.heard_age_s:.1f} s ago, while {steps[0]} waits for it (epoch {still.epoch})",
                f"It may take {self._beat_timeout_s:g} s (--beat-timeout). Its log, or py-spy, says where it stands.",
            )
            self._react(lc.Lost(self._state.epoch, fault))
