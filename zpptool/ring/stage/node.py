# SPDX-License-Identifier: Apache-2.0
"""A stage's place in the ring, as its main loop and its engine see it.

Where losses are survived, a lost neighbour ends the epoch and nothing else: the stage reports it to the head, waits for
messages of that epoch end with `StaleEpoch`, and the stage takes part in the next epoch.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from zpptool.deadline import Deadline
from zpptool.errors import ZppError, in_words, invalid_error, stage_error
from zpptool.log import place_logger
from zpptool.ring.delivery import POLL_S
from zpptool.ring.heartbeat import Pulse
from zpptool.ring.loop_times import Rest
from zpptool.ring.messages import Call, Fault, Moved, Received, Reply, RollCall, StageFacts, Verdict, encode_control
from zpptool.ring.stage.callbacks import StageCallbacks
from zpptool.ring.stage.endings import AskedToLeave, RingOver
from zpptool.ring.stage.inbox import StageInbox
from zpptool.ring.stage.losses import Losses, RunEpoch
from zpptool.ring.stage.order import SendOrder
from zpptool.ring.stage.outbox import StageOutbox
from zpptool.ring.stage.relay import StageRelay
from zpptool.ring.stage.reporter import StageReporter
from zpptool.ring.stage.traced_boxes import TracedInbox, TracedOutbox
from zpptool.ring.status import COMPUTING
from zpptool.ring.timeline import Timeline
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkReceiver, LinkSender, LinkTimeout, Sent, StaleEpoch
from zpptool.wire.link_errors import WireError, WireFault
from zpptool.wire.message import tensors
from zpptool.wire.message.consistency import TensorSchema
from zpptool.wire.message.framing import Buffer, Kind, Message

if TYPE_CHECKING:
    import torch

LEAVE_S = 5.0
"""How long, in seconds, a stage that does not restart may take to send the new address of its place."""
REMIND_S = 20.0
"""How often, in seconds, a stage that waits for the ring to close logs that again."""

_Wanted = TypeVar("_Wanted")


class StageNode:
    """What a stage's main loop and its engine see of the ring.

    Args:
        stage: this stage's place.
        upstream: receives from the stage before (from the head, on stage 0).
        downstream: sends to the next stage (to the head, on the last one).
        timeouts: of the stage; its `beat_s` limits a main loop at a step of an epoch that is over.
        is_last: whether `downstream` leads to the head.
        layers: the half-open layer range that it owns.
        timeline: records calls and waits; None for no record.

    Attributes:
        stage: its place.
        pulse: what its main loop is doing; the main loop keeps it up to date.
    """

    def __init__(
        self,
        stage: int,
        upstream: LinkReceiver,
        downstream: LinkSender,
        timeouts: RingTimeouts,
        *,
        is_last: bool,
        layers: tuple[int, int] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.stage = stage
        self.pulse = Pulse()
        self._upstream = upstream
        self._downstream = downstream
        self._timeouts = timeouts
        self._is_last = is_last
        self._timeline = timeline
        self._log = place_logger(__name__, stage)
        self._schema = TensorSchema()
        self._callbacks = StageCallbacks()
        self._losses = losses = Losses()
        inbox = StageInbox(stage, upstream, losses)
        self._relay = StageRelay(
            stage,
            upstream,
            downstream,
            is_last=is_last,
            inbox=inbox,
            losses=losses,
            callbacks=self._callbacks,
            timeouts=timeouts,
            log=self._log,
        )
        self._reporter = StageReporter(
            stage, layers, self.pulse, upstream, downstream, log=self._log, check=self._end_if_stuck
        )
        outbox = StageOutbox(
            stage, downstream, inbox, timeouts, raise_if_over=self._relay.raise_if_over, lose=self._relay.lose
        )
        self._facts: StageFacts | None = None
        self._inbox: StageInbox | TracedInbox = inbox
        self._outbox: StageOutbox | TracedOutbox = outbox
        if timeline is not None:
            self._inbox = TracedInbox(inbox, timeline)
            self._outbox = TracedOutbox(outbox, timeline)

    @property
    def doing(self) -> RunEpoch:
        """The run and the epoch of the call that is being done."""
        return self._inbox.doing

    @property
    def step_timeout_s(self) -> float:
        """How long, in seconds, a neighbour may take to send or to accept what a step needs."""
        return self._timeouts.step_s

    def on_over(self, callback: Callable[[ZppError], None]) -> None:
        """Have `callback` called once with the reason, from the receiving thread, when the run is over."""
        self._callbacks.on_over = callback

    def on_stuck(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the main loop hangs at a step of an epoch that is over."""
        self._callbacks.on_stuck = callback

    def on_moved(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called, from the receiving thread, with each new address of the stage before."""
        self._callbacks.on_moved = callback

    def join(self, facts: StageFacts) -> None:
        """Take part in the roll call and wait for the head's verdict.

        Raises:
            ZppError: (INVALID) the head refuses the pipeline; (STAGE) a neighbour or the verdict did not come in time.
        """
        self._facts = facts
        self._relay.start(facts)
        self._reporter.start()
        self._log.info(f"waiting for {self._upstream.peer} at {self._upstream.endpoint}")
        self._await(RollCall, f"the roll call from {self._upstream.peer}")
        self._log.info("waiting for the head's verdict on the roll call")
        verdict = self._await(Verdict, "the head's verdict on the roll call")
        self._relay.joined.set()
        _raise_if_refused(verdict)

    def calls(self) -> Iterator[Received]:
        """The head's calls, in order, until the run is stopped. Calls that have arrived by then are not done.

        Raises:
            AskedToLeave: (AGAIN, or OK) the head has asked this stage to leave.
            ZppError: (STAGE) a neighbour was lost.
        """
        while True:
            try:
                received = self._inbox.next_control(None)
            except RingOver as over:
                self._log.info(over.message)
                return
            match received.control:
                case Call():
                    yield received
                case RollCall() as roll:
                    with suppress(StaleEpoch):  # the next epoch calls the roll again
                        self._answer_roll(roll)
                case Verdict() as verdict:
                    _raise_if_refused(verdict)

    def reply(self, call: Call, payload: bytes) -> None:
        """Answer a call, if this stage's answer is needed; raises `StaleEpoch` when the call's epoch is over."""
        if call.from_all or self._is_last:
            self._outbox.send_control(Reply(number=call.number, stage=self.stage), payload)

    def fail(self, call: Call | None, message: str, detail: str = "") -> None:
        """Report to the head that this stage cannot go on, with `call` or, if that is None, with anything."""
        number = call.number if call else None
        text = f"stage {self.stage}: {message}"
        lost = self.doing.epoch if call is None and self._timeouts.survives_losses else None
        self._outbox.send_control(Fault(stage=self.stage, number=number, message=text, detail=detail, lost=lost))

    def order(self) -> SendOrder:
        """The call that is being done, for tensors of it that are sent later."""
        return SendOrder(self._inbox.doing, self._inbox.call)

    def send_tensors(
        self, header: bytes, frames: Sequence[Buffer], order: SendOrder | None = None
    ) -> Callable[[], None]:
        """Send a packed tensor dict to the next stage. Any thread may call this.

        Args:
            header: of the dict.
            frames: of the dict.
            order: the call that it belongs to; by default the one that is being done.

        Returns:
            a function that waits until the memory behind `frames` may be changed. It returns at once when the epoch of
            the order is over, because no call will read that message.

        Raises:
            StaleEpoch: the epoch of the order is over.
            ZppError: (STAGE) the next stage did not accept it within the step timeout.
        """
        order = order or self.order()
        with self.pulse.at_rest(Rest.SEND):
            sent = self._outbox.send_tensors(order, header, frames)
        return lambda: self._await_sent(sent, order)

    def sending_failed(self, order: SendOrder, fault: Exception) -> None:
        """Report tensors that could not be sent after their order, from any thread. If their epoch is over that is no
        failure; otherwise it ends."""
        if isinstance(fault, StaleEpoch | RingOver) or self._is_over(order):
            self._log.info("tensors of call %d are not sent: %s", order.call, in_words(fault))
            return
        self._log.error("tensors of call %d could not be sent: %s", order.call, in_words(fault))
        message = f"stage {self.stage}: the tensors of call {order.call} could not be sent: {in_words(fault)}"
        lost = order.session.epoch if self._timeouts.survives_losses else None
        with suppress(ZppError):  # the run is over, or the head cannot be reached: it has noticed
            self._outbox.send_control(Fault(stage=self.stage, number=None, message=message, detail="", lost=lost))

    def raise_if_over(self, order: SendOrder) -> None:
        """End a wait to send tensors of this call.

        Raises:
            StaleEpoch: the epoch of the order is over.
            ZppError: the run is over.
        """
        self._relay.raise_if_over()
        if self._is_over(order):
            raise StaleEpoch(f"stage {self.stage}: epoch {order.session.epoch} is over", stage=self.stage)

    def not_accepted(self, deadline: Deadline) -> ZppError:
        """The error of a next stage that accepts no tensors."""
        return self._downstream.faults.timed_out(deadline, "accept the tensors that were sent before")

    def receive_tensors(self) -> Message:
        """The tensor message of the stage before for the call that is being done.

        Raises:
            RingOver: the run was stopped.
            StaleEpoch: the call's epoch is over.
            WrongCall: (STAGE) the message that was due belongs to another call.
            ZppError: (STAGE) it did not arrive within the step timeout, or that stage was lost.
        """
        with self.pulse.at_rest(Rest.RECEIVE):
            return self._inbox.next_tensors(self._timeouts.step_s)

    def unpack(self, message: Message, device: torch.device | str | None = None) -> dict[str, Any]:
        """The tensors and plain values of a tensor message.

        Args:
            message: the message.
            device: where the tensors go; the CPU if None.

        Raises:
            WireError: (STAGE) it is malformed; names the stage that sent it.
        """
        try:
            received = tensors.unpack(message.header, message.frames, device=device)
            self._schema.check(message.epoch, received)
            return received
        except WireError as error:
            raise self._upstream.faults.refused_message(error) from None

    def leave(self, asked: AskedToLeave) -> None:
        """Before the process ends: if another process takes this place, send its address to the next place."""
        if asked.moved_to:
            message = encode_control(Moved(asked.moved_to))
            try:
                self._downstream.send(Kind.CONTROL, message, source=self.stage, timeout_s=LEAVE_S)
            except WireFault as undelivered:
                self._log.warning(
                    f"{self._downstream.peer} could not be sent the new address of this place: {undelivered.message}"
                )

    def close(self) -> None:
        """End the threads and close both links; messages sent before still leave within the links' linger."""
        if self._timeline is not None:
            self._timeline.flush()  # first: a process that takes long to close its links may be killed meanwhile
        self._relay.closing.set()
        self._reporter.stop()
        self._relay.join()
        self._upstream.close()
        self._downstream.close()
        if self._timeline is not None:
            self._timeline.flush()

    def _is_over(self, order: SendOrder) -> bool:
        return self._inbox.epoch != order.session or self._losses.is_lost(order.session)

    def _await_sent(self, sent: Sent, order: SendOrder) -> None:
        """Wait until the memory of a message may be changed."""
        deadline = Deadline(self._timeouts.step_s)
        while not sent.done and not self._is_over(order):
            try:
                sent.wait(min(POLL_S, deadline.remaining_s()))
            except LinkTimeout:
                if not deadline.remaining_s():
                    raise

    def _await(self, wanted: type[_Wanted], what: str) -> _Wanted:
        """The next control message of one type; roll calls are answered on the way."""
        began = time.monotonic()
        limit_s = self._timeouts.start_s
        while (waited := time.monotonic() - began) < limit_s:
            try:
                received = self._inbox.next_control(min(REMIND_S, limit_s - waited))
            except queue.Empty:
                self._log.info(f"still waiting for {what} ({time.monotonic() - began:.0f} s)")
                continue
            if isinstance(received.control, RollCall):
                self._log.info(f"waiting for {self._downstream.peer} to connect to {self._downstream.endpoint}")
                with suppress(StaleEpoch):  # the next epoch calls the roll again
                    self._answer_roll(received.control)
            if isinstance(received.control, wanted):
                return received.control
        waited_for = f"stage {self.stage} has waited {limit_s:g} s for {what} at {self._upstream.endpoint}"
        if self._upstream.refusal_reason:
            raise stage_error(
                f"{waited_for}, and was refused there: {self._upstream.refusal_reason}",
                "Stop the other process of this stage, or give this one its own place.",
            )
        raise stage_error(waited_for, "Is the stage before it running, and is the address right?")

    def _answer_roll(self, roll: RollCall) -> None:
        """Add this stage to the roll call and pass it on."""
        assert self._facts is not None
        self._outbox.send_control(RollCall(stages=(*roll.stages, self._facts)), timeout_s=self._timeouts.start_s)

    def _end_if_stuck(self) -> None:
        """A main loop that hangs at a step of an epoch that is over keeps the ring from becoming whole."""
        over = self._inbox.doing != self._inbox.epoch
        age_s = self.pulse.age_s
        stuck = over and self.pulse.phase == COMPUTING and age_s > self._timeouts.beat_s
        if stuck and self._timeouts.survives_losses:
            self._log.warning(f"no progress for {age_s:.0f} s at a step of an epoch that is over: this stage ends")
            self._callbacks.on_stuck()


def _raise_if_refused(verdict: Verdict) -> None:
    if verdict.reasons:
        raise invalid_error("the head refuses this pipeline: " + "; ".join(verdict.reasons))
