# SPDX-License-Identifier: Apache-2.0
"""The head's receiving thread: it takes events and messages one at a time, and has the reactor act on them."""

from __future__ import annotations

import threading

import msgspec

from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.log import place_logger
from zpptool.places import HEAD
from zpptool.ring.delivery import POLL_S
from zpptool.ring.head.callbacks import HeadCallbacks
from zpptool.ring.head.epochs import Closed, Failed, Lost
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCalls
from zpptool.ring.head.reactor import HeadReactor
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.view import RingView
from zpptool.ring.head.watchdog import Watchdog
from zpptool.ring.messages import Fault, Moved, Received, Reply, Report, RollCall, Stop, decode_control, decode_upstream
from zpptool.wire.link import LinkReceiver, LinkSender, LinkTimeout
from zpptool.wire.link_errors import PeerLost, StaleEpoch, WireError
from zpptool.wire.protocol.sequence import SequenceError

_log = place_logger(__name__, HEAD)


class HeadEventLoop:
    """One thread, which alone receives from the last stage and alone uses the reactor.

    Args:
        downstream: the link to stage 0; what the stages report upstream arrives on it.
        upstream: the link from the last stage.
        reactor: acts on events.
        calls: settled with the answers that arrive.
        recoveries: informed of answers.
        view: updated with the stages' reports.
        watchdog: asked for overdue calls and hung stages at each turn.
        events: what other threads post.
        callbacks: of the engine.

    Attributes:
        stopping: set before the head sends the stop; a lost link is no fault after that.
    """

    def __init__(
        self,
        downstream: LinkSender,
        upstream: LinkReceiver,
        *,
        reactor: HeadReactor,
        calls: PendingCalls,
        recoveries: Recoveries,
        view: RingView,
        watchdog: Watchdog,
        events: EventQueue,
        callbacks: HeadCallbacks,
    ) -> None:
        self._downstream = downstream
        self._upstream = upstream
        self._reactor = reactor
        self._calls = calls
        self._recoveries = recoveries
        self._view = view
        self._watchdog = watchdog
        self._events = events
        self._callbacks = callbacks
        self.stopping = False
        downstream.on_notification(self._take_report)
        downstream.on_lost(upstream.interrupt)
        upstream.on_welcome(lambda _run, epoch: events.post(Closed(epoch)))
        self._thread = threading.Thread(target=self._run, name="head-receive", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread to end, at most `timeout_s` seconds; on that thread itself, return at once."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._reactor.closing.is_set() and not self._reactor.is_over:
            try:
                if self._turn():
                    return
            except (StaleEpoch, LinkTimeout):  # a message of an epoch that is over, or one that was not complete
                continue
            except (PeerLost, SequenceError, WireError) as fault:
                if self.stopping:
                    return
                self._events.post(Lost(self._epoch_of(fault), fault))
            except ZppError as fault:
                self._events.post(Failed(fault))
            except Exception as cause:  # callers wait for this thread, so any error has to end their waits
                text = f"the head cannot receive any more: {type(cause).__name__}: {cause}"
                self._events.post(Failed(stage_error(text)))

    def _turn(self) -> bool:
        """Handle the events so far and at most one message; True when the run is over or the stop has come back."""
        while (event := self._events.next_event()) is not None:
            self._reactor.apply(event)
        if self._reactor.is_over:
            return True
        overdue = self._watchdog.overdue(gathering=self._reactor.gathering)
        if overdue is not None:
            raise overdue
        hung = self._watchdog.hung_stage()
        if hung is not None:
            self._reactor.apply(Lost(self._reactor.epoch, hung))
        self._check_downstream()
        if self._upstream.poll(POLL_S):
            received = self._receive(POLL_S)
            if isinstance(received.control, Stop):
                return True
            self._take(received)
        return False

    def _receive(self, timeout_s: float) -> Received:
        message = self._upstream.recv(timeout_s)
        return decode_control(
            message.header,
            message.frames,
            stage=HEAD,
            peer=self._upstream.peer,
            endpoint=self._upstream.endpoint,
            epoch=message.epoch,
        )

    def _take(self, received: Received) -> None:
        if isinstance(received.control, Moved):  # it is sent in the epoch that ends with it
            self._follow(received.control.address)
        if received.epoch != self._reactor.epoch:
            return
        match received.control:
            case RollCall(stages=stages):
                self._reactor.roll_call_answered(stages, received.epoch)
            case Reply(number=number, stage=stage):
                if self._calls.settle(number, stage, received.payload):
                    self._recoveries.call_answered(self._reactor.epoch)
            case Fault(number=None) as fault:
                self._take_fault(fault)
            case Fault(number=int(number)) as fault:
                if not self._calls.fail(number, fault.as_error()):
                    _log.info(f"too late to change the answer: {fault.message}")

    def _take_report(self, payload: bytes) -> None:
        """Take what a stage has reported upstream. Called by the link, so it must not wait."""
        try:
            control = decode_upstream(payload)
        except msgspec.DecodeError as cause:
            _log.warning(f"a report from {self._downstream.peer} cannot be read ({cause})")
            return
        if isinstance(control, Report):
            self._view.update(control.stages)
        elif isinstance(control, Fault):
            self._events.post_fault(control)

    def _take_fault(self, fault: Fault) -> None:
        """A stage cannot go on: a new epoch helps if something was lost, and for nothing else."""
        if fault.lost is not None and fault.code in (ExitCode.STAGE, ExitCode.FAILURE):
            self._reactor.apply(Lost(fault.lost, fault.as_error()))
        else:
            self._reactor.apply(Failed(fault.as_error()))

    def _check_downstream(self) -> None:
        """Act on a fault that was reported upstream, or else on the loss of stage 0.

        The report comes first because it names the cause of the loss, and it may arrive a moment later.
        """
        if self.stopping:
            return
        reported = self._events.next_fault()
        if reported is not None:
            self._take_fault(reported)
        try:
            self._downstream.check()
        except PeerLost as fault:
            self._watchdog.suspect(fault, self._epoch_of(fault))
        lost = self._watchdog.confirmed_loss()
        if lost is not None:
            self._reactor.apply(Lost(self._reactor.epoch, lost))

    def _epoch_of(self, fault: PeerLost | SequenceError | WireError) -> int:
        return self._reactor.epoch if fault.epoch is None else fault.epoch

    def _follow(self, address: str) -> None:
        """Receive from the last stage's new address."""
        _log.info(f"{self._upstream.peer} has moved to {address}")
        try:
            self._upstream.move(address)
        except ZppError as fault:
            _log.warning(f"{self._upstream.peer} cannot be followed to {address}: {fault.message}")
            return
        self._callbacks.on_moved(address)
