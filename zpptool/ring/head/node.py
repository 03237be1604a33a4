# SPDX-License-Identifier: Apache-2.0
"""The head's place in the ring: it sends calls to stage 0 and takes the replies from the last stage.

Every call has a deadline. A call that a stage cannot do fails alone. A deadline that passes breaks the pipeline: each
open call fails with the one error that names the cause, and so does every later call. A stage or a link that is lost
does the same, unless losses are survived: then the open calls are dropped and the next epoch begins (`epochs.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress

from zpptool.errors import ZppError, stage_error
from zpptool.log import place_logger
from zpptool.net.request_context import NO_REQUEST, RequestContext
from zpptool.partition import Partition
from zpptool.places import HEAD
from zpptool.ring.delivery import POLL_S
from zpptool.ring.head.call_sender import CallSender
from zpptool.ring.head.callbacks import HeadCallbacks
from zpptool.ring.head.epochs import FIRST_EPOCH, Failed, Lost
from zpptool.ring.head.event_loop import HeadEventLoop
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls, drop_calls
from zpptool.ring.head.reactor import HeadReactor
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.roster import Roster
from zpptool.ring.head.setup_log import SetupLog
from zpptool.ring.head.traced_sender import TracedCallSender
from zpptool.ring.head.view import RingSnapshot, RingView
from zpptool.ring.head.watchdog import Watchdog
from zpptool.ring.heartbeat import Heartbeat, link_status
from zpptool.ring.messages import Leave, RollCall, StageFacts, Stop, encode_control
from zpptool.ring.status import RingStatus, first_missing
from zpptool.ring.timeline import Timeline
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkReceiver, LinkSender
from zpptool.wire.link_errors import PeerLost, StaleEpoch, WireFault
from zpptool.wire.message.framing import Kind

STOP_ROUND_S = 2.0
"""How long the stop may take to go round the ring; after that the head ends without it."""
IDLE_S = 1.0
"""A ring that has been whole for this long and has no call under way counts as settled."""

_log = place_logger(__name__, HEAD)


class HeadNode:
    """What the head's engine sees of the ring.

    Args:
        num_stages: how many stages the ring has.
        num_layers: how many layers the model has.
        downstream: sends to stage 0.
        upstream: receives from the last stage.
        timeouts: of the head; its `step_s` applies to calls without a limit of their own.
        timeline: records the calls; None for no record.
    """

    def __init__(
        self,
        num_stages: int,
        num_layers: int,
        downstream: LinkSender,
        upstream: LinkReceiver,
        timeouts: RingTimeouts,
        timeline: Timeline | None = None,
    ) -> None:
        self._downstream = downstream
        self._upstream = upstream
        self._timeouts = timeouts
        self._timeline = timeline
        self._callbacks = HeadCallbacks()
        self._calls = PendingCalls()
        self._recoveries = Recoveries(timeouts.recovery_s)
        self._roster = Roster(num_stages, num_layers)
        self._view = RingView(num_stages, downstream)
        self._events = EventQueue(upstream.interrupt)
        self._heartbeat = Heartbeat(downstream.ping, "head-beat")
        self._heartbeat.start()
        watchdog = Watchdog(self._calls, self._view, self._recoveries, self._events, timeouts)
        sender = CallSender(downstream, self._calls, watchdog, self._events, timeouts.step_s)
        self._sender = sender if timeline is None else TracedCallSender(sender, timeline)
        self._setup_log = SetupLog(self._calls, self._sender.ask, self._events.post)
        self._reactor = HeadReactor(
            downstream,
            sender=self._sender,
            calls=self._calls,
            setup_log=self._setup_log,
            recoveries=self._recoveries,
            roster=self._roster,
            watchdog=watchdog,
            events=self._events,
            callbacks=self._callbacks,
            timeouts=timeouts,
        )
        self._loop = HeadEventLoop(
            downstream,
            upstream,
            reactor=self._reactor,
            calls=self._calls,
            recoveries=self._recoveries,
            view=self._view,
            watchdog=watchdog,
            events=self._events,
            callbacks=self._callbacks,
        )

    @property
    def fault(self) -> ZppError | None:
        """What broke the pipeline, or None."""
        return self._calls.fault

    @property
    def whole(self) -> int | None:
        """The epoch in which the ring is whole; None while it is not."""
        return self._calls.whole

    @property
    def may_recover(self) -> bool:
        """Whether the ring survives that a stage is lost or leaves."""
        return self._reactor.state.may_recover

    @property
    def plan_digest(self) -> str:
        """Of the plan that the pipeline was started from; empty for none."""
        return self._downstream.party.digest

    def on_fault(self, callback: Callable[[ZppError], None]) -> None:
        """Have `callback` called once, from the receiving thread, when the pipeline breaks."""
        self._callbacks.on_fault = callback

    def on_moved(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called, from the receiving thread, with each new address of the last stage."""
        self._callbacks.on_moved = callback

    def on_admit(self, amended: Callable[[tuple[StageFacts, ...]], Mapping[str, bytes]]) -> None:
        """Have `amended` called, from the receiving thread, with the admitted stages before they are set up.

        It returns new payloads, by the methods of the set-up calls, for those that depend on who owns which layers.
        """
        self._callbacks.amend_setup = amended

    def on_partition(self, prepare: Callable[[Partition], tuple[int, ...]]) -> None:
        """Have `prepare` called before layers move between stages.

        It raises a `ZppError` if the model cannot be divided so, prepares whatever depends on the partition, and
        returns the stages that have to restart.
        """
        self._callbacks.prepare_partition = prepare

    def gather(self, agreed: Mapping[str, str]) -> tuple[StageFacts, ...]:
        """Call the roll and admit the stages, or refuse them.

        Args:
            agreed: what has to be the same on every stage, by name.

        Raises:
            ZppError: (STAGE) the roll call did not come back in time; (INVALID) the stages do not fit together.
        """
        self._roster.required = agreed
        deadline = time.monotonic() + self._timeouts.start_s
        self._loop.start()
        _log.info(f"waiting for stage 0 at {self._downstream.endpoint}")
        epoch = self._reactor.epoch
        try:
            self._sender.send(RollCall(stages=()), epoch=epoch, timeout_s=self._timeouts.start_s)
        except StaleEpoch:  # a stage was lost already, and the next epoch calls the roll again
            pass
        except PeerLost as fault:
            self._events.post(Lost(self._reactor.epoch, fault))
        except ZppError as fault:
            self._events.post(Failed(fault))
        _log.info(f"roll call: waiting for the last stage at {self._upstream.endpoint}")
        while self.whole is None and self.fault is None:
            if time.monotonic() > deadline and self._reactor.epoch == FIRST_EPOCH:
                self._events.post(Failed(self._roll_call_is_late()))
            self._reactor.changed.wait(POLL_S)
            self._reactor.changed.clear()
        if self.fault is not None:
            raise self.fault
        stages = self._roster.stages
        _log.info("all stages answered: " + ", ".join(f"{facts.stage} on {facts.host}" for facts in stages))
        return stages

    def call(
        self,
        method: str,
        payload: bytes,
        *,
        from_all: bool,
        timeout_s: float | None = None,
        epoch: int | None = None,
        request: RequestContext = NO_REQUEST,
    ) -> Future[list[bytes]]:
        """Ask every stage to do something.

        Args:
            method: what to do, named by the engine.
            payload: its arguments, opaque here.
            from_all: whether every stage answers, or only the last one.
            timeout_s: how long it may take. None for a step: it has the step timeout, and a stage without progress
                during it is taken to hang.
            epoch: the one epoch that the call is for; by default the present one.
            request: the one request that it is a step of, for logs and spans of the stages.

        Returns:
            the payloads of the answers, in the order of the stages (one, if only the last one answers). It fails with
            `StaleEpoch` if the ring is not, or is no longer, whole, and otherwise with a `ZppError` (STAGE) that
            names the stage or the link at fault.
        """
        call = PendingCall(
            method,
            num_answers=self._roster.num_stages if from_all else 1,
            allowed_s=self._timeouts.step_s if timeout_s is None else timeout_s,
            long=timeout_s is not None,
            request=request,
        )
        return self._sender.ask(call, payload, only_in=epoch)

    def set_up(self, method: str, payload: bytes, *, timeout_s: float) -> Future[list[bytes]]:
        """Ask every stage to do something that any later call depends on.

        It is repeated after losses: a stage that restarts gets all set-up calls in the same order.

        Returns:
            as `call`, with the answers of all stages; it never fails with `StaleEpoch`.
        """
        call = PendingCall(method, num_answers=self._roster.num_stages, allowed_s=timeout_s, long=True)
        return self._setup_log.add(call, payload)

    def wait_until_whole(self) -> int:
        """Wait until the ring is whole, and return the epoch in which it is.

        Raises:
            ZppError: (STAGE) the pipeline is broken.
        """
        return self._calls.wait_until_whole()

    def begin_epoch(self, why: str) -> None:
        """Begin the next epoch of a ring that survives losses, without waiting for it (see `wait_until_whole`).

        Every place drops what is under way, every link counts from zero, and the set-up is repeated.

        Args:
            why: what each open call fails with, as a `StaleEpoch`.
        """
        epoch = self._reactor.epoch
        drop_calls(self._calls.suspend(), epoch, why)
        self._events.post(Lost(epoch, stage_error(why)))

    def status(self) -> RingStatus:
        """The state of the ring, from the stages' last reports."""
        status = self._view.status(
            gathered=bool(self._roster.stages),
            busy=self._calls.busy,
            stopped=self._loop.stopping,
            fault=self.fault.message if self.fault else "",
        )
        return self._recoveries.add_to(status, recovering=self._recoveries.under_way and self.fault is None)

    def look(self) -> RingSnapshot:
        """Which processes hold the places now, and whether the ring has settled since one was missing."""
        epoch, seats = self.whole, tuple(facts.seat for facts in self._roster.stages)
        idle = not self._calls.busy and time.monotonic() - self._recoveries.whole_at > IDLE_S
        settled = epoch is not None and (idle or self._recoveries.answered_in == epoch)
        over = self._loop.stopping or self._reactor.closing.is_set()
        fault = self.fault or (stage_error("the pipeline is being stopped") if over else None)
        return RingSnapshot(seats, epoch if settled else None, fault)

    def facts(self) -> tuple[StageFacts, ...]:
        """What the stages reported about themselves in the last roll call."""
        return self._roster.stages

    def knocks(self, stage: int) -> int:
        """How often another process has asked for a stage's place and was refused because the place is taken."""
        link = self._view.stages()[stage - 1].link if stage else None
        return link.knocks if link is not None else 0

    def prepare_partition(self, partition: Partition) -> tuple[int, ...]:
        """Which stages have to restart for these layer ranges; see `on_partition`."""
        return self._callbacks.prepare_partition(partition)

    def ask_to_leave(self, leave: Leave) -> None:
        """Ask the processes that hold these seats to leave and restart; whether they do is seen in `look`.

        Their leaving ends the epoch as a loss does, and is reported as a planned change. Does not wait for it.
        """
        epoch = self.whole
        if epoch is None:
            return
        places = f"stage {', '.join(str(seat.stage) for seat in leave.seats)}"
        purpose = f"its place moves to {leave.moved_to}" if leave.moved_to else "to come again"
        if leave.partition:
            purpose += f" with layers {' '.join(f'{start}-{end}' for start, end in leave.partition)}"
        self._recoveries.announce(f"{places} was asked to leave, {purpose}: {leave.why}")
        _log.info(f"{places} is asked to leave: {leave.why}", extra={"epoch": epoch})
        with suppress(ZppError):  # the epoch or the run has ended, and the receiving thread notices either
            self._sender.send(leave, epoch=epoch)

    def count_recomputed(self, tokens: int) -> None:
        """Count tokens that have to be computed again after a loss."""
        self._recoveries.recomputed_tokens += tokens

    def stop(self, reason: str) -> None:
        """Send the stop round the ring and wait for it to come back, at most `STOP_ROUND_S`.

        The wait is for stages that still have an answer to pass on, which would take an earlier end of the head for a
        loss. A broken ring gets the cause instead of `reason`, as far as messages still reach, and no wait.
        """
        fault = self.fault
        self._loop.stopping = True
        stop = Stop(reason=fault.message if fault else reason, broke=fault is not None)
        try:
            self._downstream.send(Kind.CONTROL, encode_control(stop), source=HEAD, timeout_s=POLL_S)
        except WireFault as undelivered:
            _log.info(f"the stop did not reach stage 0: {undelivered.message}")
            return
        if not stop.broke:
            self._loop.join(STOP_ROUND_S)

    def close(self) -> None:
        """End the thread, fail the calls that are still open, and close both links."""
        if self._timeline is not None:
            self._timeline.flush()  # first: a process that takes long to close its links may be killed meanwhile
        self._reactor.closing.set()
        self._heartbeat.stop()
        self._upstream.interrupt()
        self._loop.join()
        self._setup_log.fail_all(stage_error("the head has ended"))
        self._downstream.close()
        self._upstream.close()
        if self._timeline is not None:
            self._timeline.flush()

    def _roll_call_is_late(self) -> ZppError:
        late = f"the roll call has not returned in {self._timeouts.start_s:g} s"
        missing = first_missing(link_status(self._downstream), self._view.stages())
        if missing is not None:
            stage, link = missing
            return stage_error(
                f"{late}: stage {stage} is missing, it has not connected to {link.endpoint}",
                f"Start stage {stage}, or correct the address that it connects to.",
            )
        return stage_error(
            f"{late}: it left for stage 0 and nothing came back from {self._upstream.peer} at"
            f" {self._upstream.endpoint}",
            "Each stage prints what it waits for: look at the first one that waits for its neighbour.",
        )
