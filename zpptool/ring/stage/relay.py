# SPDX-License-Identifier: Apache-2.0
"""A stage's receiving thread: it relays what passes through the ring, fills the inbox, and reacts to losses.

Calls and stops are relayed onward, replies and faults towards the head, before anything else: a stage that computes
delays no other one.

The invariant: this thread never waits for another place. What cannot be passed on at once goes into the backlog, so
that a new epoch is noticed whatever happens to the stages after this one.
"""

from __future__ import annotations

import threading
import time

import msgspec

from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.log import PlaceLogger
from zpptool.ring.delivery import POLL_S
from zpptool.ring.messages import (
    Fault,
    Leave,
    Moved,
    Reply,
    RollCall,
    StageFacts,
    Stop,
    decode_control,
    encode_control,
)
from zpptool.ring.stage.backlog import RELAY_S, Backlog
from zpptool.ring.stage.callbacks import StageCallbacks
from zpptool.ring.stage.endings import AskedToLeave, RingBroken, RingOver, with_hint
from zpptool.ring.stage.inbox import StageInbox
from zpptool.ring.stage.losses import Losses, RunEpoch
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkReceiver, LinkRefused, LinkSender, LinkTimeout, PeerLost, StaleEpoch
from zpptool.wire.link_errors import WireError, WireFault
from zpptool.wire.message.framing import Kind, Message
from zpptool.wire.protocol.sequence import SequenceError

PATIENCE_S = 10.0
"""A stage waits this much longer than the head, in seconds, for a ring that is not whole: the head knows the cause."""
RETRY_S = 0.3
"""The pause before another handshake after a refusal: the stage before may still be connected to another process."""


class StageRelay:
    """One thread, which alone receives from the stage before.

    Args:
        stage: the stage's place.
        upstream: receives from the stage before (from the head, on stage 0).
        downstream: sends to the next stage (to the head, on the last one).
        is_last: whether `downstream` leads to the head.
        inbox: filled for the main loop.
        losses: the record of lost neighbours.
        callbacks: of the stage's process.
        timeouts: of the stage.
        log: of the stage.

    Attributes:
        joined: set once the stage has been admitted or refused; from then on this thread answers roll calls.
        closing: set when the node closes.
    """

    def __init__(
        self,
        stage: int,
        upstream: LinkReceiver,
        downstream: LinkSender,
        *,
        is_last: bool,
        inbox: StageInbox,
        losses: Losses,
        callbacks: StageCallbacks,
        timeouts: RingTimeouts,
        log: PlaceLogger,
    ) -> None:
        self._stage = stage
        self._upstream = upstream
        self._downstream = downstream
        self._is_last = is_last
        self._inbox = inbox
        self._losses = losses
        self._callbacks = callbacks
        self._timeouts = timeouts
        self._log = log
        self._backlog = Backlog(downstream)
        self._facts: StageFacts | None = None
        self._over: ZppError | None = None
        self._relayed_fault: str | None = None
        self._refused_since: float | None = None
        self.joined = threading.Event()
        self.closing = threading.Event()
        upstream.on_welcome(self._begin_epoch)
        downstream.on_lost(upstream.interrupt)
        self._thread = threading.Thread(target=self._run, name=f"stage-{stage}-receive", daemon=True)

    def start(self, facts: StageFacts) -> None:
        """Start the thread.

        Args:
            facts: what the stage adds to roll calls.
        """
        self._facts = facts
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread to end, which it does after `closing` is set."""
        if self._thread.is_alive():
            self._thread.join()

    def raise_if_over(self) -> None:
        """Raise the reason if the run is over or the node has closed."""
        if self._over is not None:
            raise self._over
        if self.closing.is_set():
            raise RingOver(f"stage {self._stage} has closed its links", exit_code=ExitCode.STAGE)

    def lose(self, fault: WireFault) -> None:
        """A neighbour was lost: report it to the head, once an epoch, and end waits for messages of that epoch."""
        link = self._downstream if fault.endpoint == self._downstream.endpoint else self._upstream
        epoch = RunEpoch(link.party.run_id, link.party.epoch if fault.epoch is None else fault.epoch)
        if self._losses.record(epoch, fault):
            self._log.warning(f"epoch {epoch.epoch} is over: {fault.message}", extra={"epoch": epoch.epoch})
            self._report_fault(fault, lost=epoch.epoch)
            self._inbox.recheck_epoch()

    def _begin_epoch(self, run_id: str, epoch: int) -> None:
        """The stage before has accepted the link, in a new run or epoch: open the next link for it.

        So a new epoch passes through the ring, and waits for tensors of an older one end. It must not wait, because
        the link calls it.
        """
        self._downstream.begin(run_id, epoch)
        self._losses.epoch_began()
        self._relayed_fault = None
        self._refused_since = None
        self._inbox.recheck_epoch()

    def _run(self) -> None:
        try:
            self._receive_all()
        except ZppError as fault:
            self._give_up(fault)
        except Exception as cause:  # the main loop waits for this thread, so any error has to end its waits
            # With FAILURE, the supervisor restarts this stage instead of taking it for the end of the run.
            code = ExitCode.FAILURE if self._timeouts.survives_losses else ExitCode.STAGE
            text = f"stage {self._stage} cannot receive any more: {type(cause).__name__}: {cause}"
            self._give_up(ZppError(text, exit_code=code))

    def _receive_all(self) -> None:
        while not self.closing.is_set() and self._over is None:
            try:
                self._backlog.flush()
                if self._upstream.poll(RELAY_S if self._backlog else POLL_S):
                    self._sort(self._upstream.recv(POLL_S))
                else:
                    self._check_downstream()
            except WireFault as fault:
                if not self._survives(fault):
                    raise

    def _check_downstream(self) -> None:
        """Check that the next place is connected and that a recovery is not overdue.

        Raises:
            PeerLost: the next place was lost.
            ZppError: (STAGE) the recovery is overdue.
        """
        self._check_recovery()
        party = self._downstream.party
        epoch = RunEpoch(party.run_id, party.epoch)
        if self._losses.is_lost(epoch):
            return
        try:
            self._downstream.check()
        except PeerLost as lost:
            if self._timeouts.survives_losses or not self.joined.is_set():
                raise
            self._losses.record(epoch, lost)
            self._report_fault(lost)  # the head decides what follows for the run

    def _check_recovery(self) -> None:
        waited_s, cause = self._losses.waited_s, self._losses.cause
        if self._timeouts.survives_losses and waited_s > self._timeouts.recovery_s + PATIENCE_S:
            raise stage_error(
                f"stage {self._stage} has waited {waited_s:.0f} s for the ring to become whole again",
                cause.message if cause else None,
            )

    def _survives(self, fault: WireFault) -> bool:
        """Whether the stage goes on after this fault, perhaps in another epoch."""
        if isinstance(fault, StaleEpoch | LinkTimeout):  # a message of an epoch that is over, or an incomplete one
            return True
        if not self._timeouts.survives_losses:
            return False
        if isinstance(fault, LinkRefused) and fault.exit_code is ExitCode.STAGE:
            return self._retry_handshake()
        if isinstance(fault, PeerLost | SequenceError | WireError):
            self.lose(fault)
            self._check_recovery()
            return True
        return False

    def _retry_handshake(self) -> bool:
        """Repeat a handshake that was refused, as a process that has ended, or is about to, may still hold the place.

        Returns:
            False if the time for that is over.
        """
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        recovery_s, start_s = self._timeouts.recovery_s, self._timeouts.start_s
        patience_s = recovery_s if self.joined.is_set() else max(recovery_s, start_s)
        if now - self._refused_since > patience_s:
            return False
        self.closing.wait(RETRY_S)
        self._upstream.greet_again()
        return True

    def _give_up(self, fault: ZppError) -> None:
        if self.closing.is_set():
            return
        if self._relayed_fault is not None:
            fault = with_hint(fault, f"It began elsewhere: {self._relayed_fault}.")
        self._report_fault(fault, lost=self._inbox.epoch.epoch if fault.exit_code is ExitCode.FAILURE else None)
        self._end(fault)

    def _report_fault(self, fault: ZppError, lost: int | None = None) -> None:
        """Send a fault to the head in both directions of the ring, one of which may be cut.

        Args:
            fault: the fault.
            lost: the epoch that ended with it; None for none.
        """
        detail, code = fault.hint or "", fault.exit_code
        message = encode_control(
            Fault(stage=self._stage, number=None, message=fault.message, detail=detail, code=code, lost=lost)
        )
        self._upstream.notify(message)
        self._send_last(message)

    def _sort(self, message: Message) -> None:
        """Relay a message, or put it into the inbox, or both."""
        if message.kind is Kind.TENSORS:
            self._inbox.put_tensors(message)
            return
        received = decode_control(
            message.header, message.frames,
            stage=self._stage, peer=self._upstream.peer, endpoint=self._upstream.endpoint, epoch=message.epoch,
        )  # fmt: skip
        match received.control:
            case Reply():
                self._relay(message)
            case Fault(number=number, message=text, lost=lost):
                if number is None:
                    self._relayed_fault = text
                epoch = self._inbox.epoch
                if lost == epoch.epoch and self._losses.record(epoch, received.control.as_error()):
                    self._inbox.recheck_epoch()
                self._relay(message)
            case RollCall() as roll if self.joined.is_set():
                assert self._facts is not None
                answered = encode_control(RollCall(stages=(*roll.stages, self._facts)))
                self._relay(msgspec.structs.replace(message, header=answered), source=self._stage)
            case RollCall():
                self._inbox.put_control(received)
            case Stop(reason=reason, broke=broke):
                self._send_last(message.header)
                text = f"the head has stopped the run: {reason}"
                self._end(RingBroken(text) if broke else RingOver(text, exit_code=ExitCode.STAGE))
            case Leave() as leave:
                if not self._is_last:
                    self._relay(message)
                self._take_leave(leave)
            case Moved(address=address):
                self._follow(address)
            case _:
                if not self._is_last:
                    self._relay(message)
                self._inbox.put_control(received)

    def _take_leave(self, leave: Leave) -> None:
        """Have the main loop leave if this process is asked to."""
        if self._facts is not None and self._facts.seat in leave.seats:
            self._inbox.interrupt_calls(AskedToLeave(leave))
        else:
            stages = ", ".join(str(seat.stage) for seat in leave.seats)
            self._log.info(f"stage {stages} is asked to leave: {leave.why}")

    def _follow(self, address: str) -> None:
        """Receive from the new address of the stage before."""
        self._log.info(f"{self._upstream.peer} has moved to {address}")
        try:
            self._upstream.move(address)
        except ZppError as fault:
            self._log.warning(f"{self._upstream.peer} cannot be followed to {address}: {fault.message}")
            return
        self._callbacks.on_moved(address)

    def _end(self, why: ZppError) -> None:
        """End every wait of the main loop: nothing more will arrive."""
        self._over = why
        self._inbox.end(why)
        self._callbacks.on_over(why)

    def _relay(self, message: Message, source: int | None = None) -> None:
        place = message.source if source is None else source
        self._backlog.relay(message, epoch=self._inbox.epoch, source=place)

    def _send_last(self, header: bytes) -> None:
        """Send a control message that ends an epoch or the run; a next place that has ended already is no fault."""
        try:
            self._downstream.send(Kind.CONTROL, header, source=self._stage, timeout_s=POLL_S)
        except WireFault as undelivered:
            self._log.info(f"{self._downstream.peer} could not be informed of the end: {undelivered.message}")
