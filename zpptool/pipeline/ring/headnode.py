# SPDX-License-Identifier: Apache-2.0
"""The head's place in the ring: it sends calls to stage 0 and takes the replies from the last stage.

Every call has a deadline. A call that a stage cannot do fails alone. A stage that gives up, a link that is lost and a
deadline that passes break the pipeline: each open call fails with the one error that names the cause, and so does
every later call.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zpptool.errors import ZppError, invalid_error, stage_error
from zpptool.pipeline.ring import control as c
from zpptool.pipeline.ring.neighbour import POLL_S, Delivery
from zpptool.pipeline.ring.pulse import Beat
from zpptool.pipeline.ring.rollcall import disagreements
from zpptool.pipeline.ring.status import RingStatus, hung
from zpptool.pipeline.ring.statussocket import StatusSocket
from zpptool.pipeline.ring.view import RingView
from zpptool.wire.errors import PeerLost, StaleEpoch, WireFault
from zpptool.wire.link import PullLink, PushLink
from zpptool.wire.messages import HEAD, Kind

CAUSE_S = 0.6
"""How long the head, when stage 0 has gone, waits for word of what made it go: a stage ends because of another one."""

STOP_ROUND_S = 2.0
"""How long the word that the run is over may take round the ring before the head leaves all the same."""


@dataclass(slots=True)
class _OpenCall:
    method: str
    wanted: int
    allowed_s: float
    deadline: float
    long: bool
    future: Future[list[bytes]]
    payloads: dict[int, bytes] = field(default_factory=dict)


class HeadNode:
    """The head's two links, the calls that are open, and the thread that takes the replies.

    Attributes:
        fault: what broke the pipeline, or None.

    Args:
        num_stages: how many stages the ring has.
        num_layers: how many layers the model has.
        outward: sends to stage 0.
        homeward: receives from the last stage.
        start_timeout_s: how long the roll call may take to come round.
        step_timeout_s: how long a call may take, unless it says otherwise.
        note: is told, in words, what the head waits for.
        beat_timeout_s: how long a stage may stand still at a step, or be silent, before it is taken to hang.
        status_at: where the head tells its status; None for nowhere.
    """

    def __init__(
        self,
        num_stages: int,
        num_layers: int,
        outward: PushLink,
        homeward: PullLink,
        *,
        start_timeout_s: float,
        step_timeout_s: float,
        note: Callable[[str], None],
        beat_timeout_s: float = 60.0,
        status_at: Path | None = None,
    ) -> None:
        self._num_stages = num_stages
        self._beat_timeout_s = beat_timeout_s
        self._view = RingView(num_stages, outward)
        self._gathered = False
        self._beat = Beat(outward.ping, "head-beat")
        self._beat.start()
        self._status_socket: StatusSocket | None = None
        self._num_layers = num_layers
        self._outward = outward
        self._outbox = Delivery(outward, self._raise_if_broken)
        self._homeward = homeward
        self._start_timeout_s = start_timeout_s
        self._step_timeout_s = step_timeout_s
        self._note = note
        self._numbers = itertools.count()
        self._open: dict[int, _OpenCall] = {}
        self.fault: ZppError | None = None
        self._suspected: tuple[ZppError, float] | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._stopping = False
        self._told: queue.SimpleQueue[c.Fault] = queue.SimpleQueue()
        outward.on_told(self._hear_told)
        outward.on_lost(homeward.interrupt)
        self._on_fault: Callable[[ZppError], None] = lambda _fault: None
        self._thread = threading.Thread(target=self._serve, name="head-receive", daemon=True)
        if status_at is not None:
            try:
                self._status_socket = StatusSocket(status_at, self.status)
            except OSError as cause:
                note(f"the status is not told at {status_at}: {cause.strerror or cause}")

    def gather(self, agreed: Mapping[str, str]) -> tuple[c.StageFacts, ...]:
        """Call the roll and let the stages in, or refuse them.

        Args:
            agreed: what has to be the same on every stage, by name.

        Raises:
            ZppError: (STAGE) the roll call did not come round in time; (INVALID) the stages do not fit together.
        """
        try:
            stages = self._call_the_roll(agreed)
        except ZppError as fault:
            self._fail_all(fault)
            raise
        self._gathered = True
        self._note("all stages answered: " + ", ".join(f"{f.stage} on {f.host}" for f in stages))
        self._thread.start()
        return stages

    def on_fault(self, callback: Callable[[ZppError], None]) -> None:
        """Have `callback` called once, from the receiving thread, when the pipeline breaks."""
        self._on_fault = callback

    def call(
        self, method: str, payload: bytes, *, from_all: bool, timeout_s: float | None = None
    ) -> Future[list[bytes]]:
        """Ask every stage to do something.

        Args:
            method: what to do, in the engine's words.
            payload: its arguments, opaque here.
            from_all: whether every stage's answer is wanted, or only the last one's.
            timeout_s: how long it may take. None for a step: it has the step timeout, and a stage that stands still
                at it is taken to hang.

        Returns:
            the payloads of the answers, in the order of the stages (one, when only the last was wanted). It fails with
            a `ZppError` (STAGE) that names the stage or the link at fault.
        """
        number = next(self._numbers)
        future: Future[list[bytes]] = Future()
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: only this node settles it
        allowed_s = self._step_timeout_s if timeout_s is None else timeout_s
        wanted = self._num_stages if from_all else 1
        long = timeout_s is not None
        with self._lock:
            if self.fault is not None:
                future.set_exception(self.fault)
                return future
            self._open[number] = _OpenCall(method, wanted, allowed_s, time.monotonic() + allowed_s, long, future)
        try:
            self._say(c.Call(number=number, method=method, from_all=from_all, long=long), payload)
        except PeerLost as fault:
            self._suspect(fault)
        except ZppError as fault:
            self._break(fault)
        return future

    def begin_epoch(self, why: str) -> int:
        """Begin the next epoch of the run: what is under way is dropped by whoever has it, and every link counts anew.

        The new epoch goes round the ring with the links' welcomes, ahead of whatever is asked in it.

        Args:
            why: what each open call fails with, as a `StaleEpoch`.

        Returns:
            its number.
        """
        party = self._outward.party
        epoch = party.epoch + 1
        with self._lock:
            calls, self._open = list(self._open.values()), {}
            self._outward.begin(party.run_id, epoch)  # whoever asks from now on asks in it
        for call in calls:
            call.future.set_exception(
                StaleEpoch(f"{call.method} was dropped with epoch {party.epoch}: {why}", stage=HEAD, epoch=party.epoch)
            )
        return epoch

    def status(self) -> RingStatus:
        """How the ring fares, as far as it was heard."""
        with self._lock:
            busy = bool(self._open)
        return self._view.status(
            gathered=self._gathered, busy=busy, stopped=self._stopping, fault=self.fault.message if self.fault else ""
        )

    def stop(self, reason: str) -> None:
        """Tell every stage that the run is over, and wait for the word to come home: a stage that still had an answer
        to pass on when the head left would take that for a loss. A ring that is broken is told by what, and as far as
        it reaches."""
        fault = self.fault
        self._stopping = True
        stop = c.Stop(reason=fault.message if fault else reason, broke=fault is not None)
        try:
            self._outward.send(Kind.CONTROL, c.encode(stop), source=HEAD, timeout_s=POLL_S)
        except WireFault as fault:
            self._note(f"the stop did not reach stage 0: {fault.message}")
            return
        if stop.broke or not self._thread.is_alive() or self._thread is threading.current_thread():
            return
        self._thread.join(STOP_ROUND_S)

    def close(self) -> None:
        """End the thread, fail the calls that are still open, and close both links."""
        self._closing.set()
        self._beat.stop()
        if self._status_socket is not None:
            self._status_socket.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._fail_all(stage_error("the head has ended"))
        self._outward.close()
        self._homeward.close()

    def _say(self, control: c.Control, payload: bytes = b"", *, timeout_s: float | None = None) -> None:
        frames = (payload,) if payload else ()
        timeout_s = timeout_s or self._step_timeout_s
        self._outbox.send(Kind.CONTROL, c.encode(control), frames, source=HEAD, timeout_s=timeout_s)

    def _raise_if_broken(self) -> None:
        if self.fault is not None:
            raise self.fault

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

    def _call_the_roll(self, agreed: Mapping[str, str]) -> tuple[c.StageFacts, ...]:
        self._note(f"waiting for stage 0 at {self._outward.endpoint}")
        self._say(c.RollCall(stages=()), timeout_s=self._start_timeout_s)
        self._note(f"roll call: waiting for the last stage at {self._homeward.endpoint}")
        stages = self._roll_call_home().stages
        reasons = disagreements(self._num_stages, self._num_layers, agreed, stages)
        self._say(c.Verdict(reasons=tuple(reasons)))
        if reasons:
            raise invalid_error("the stages do not make one pipeline: " + "; ".join(reasons))
        return stages

    def _roll_call_home(self) -> c.RollCall:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            self._look_outward()
            if not self._homeward.poll(POLL_S):
                continue
            control = self._receive(POLL_S).control
            if isinstance(control, c.RollCall):
                return control
            if isinstance(control, c.Fault):
                raise control.as_error()
        raise stage_error(
            f"the roll call has not come round in {self._start_timeout_s:g} s: it left for stage 0 and nothing came"
            f" back from {self._homeward.peer} at {self._homeward.endpoint}",
            "Each stage prints what it waits for: look at the first one that waits for its neighbour.",
        )

    def _serve(self) -> None:
        try:
            while not self._closing.is_set():
                self._check_deadlines()
                self._check_beats()
                self._look_outward()
                if self._homeward.poll(POLL_S):
                    received = self._receive(POLL_S)
                    if isinstance(received.control, c.Stop):
                        return
                    self._take(received)
        except ZppError as fault:
            self._break(fault)
        except Exception as cause:  # whatever it is, nobody may go on waiting for this thread
            self._break(stage_error(f"the head cannot receive any more: {type(cause).__name__}: {cause}"))

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
        """Raise what a stage told, or else, a moment later, that stage 0 has gone: the first is the cause of the
        second, and may still be on its way."""
        if self._stopping:
            return
        with suppress(queue.Empty):
            raise self._told.get_nowait().as_error()
        try:
            self._outward.check()
        except PeerLost as fault:
            self._suspect(fault)
        if self._suspected is not None and self._suspected[1] < time.monotonic():
            raise self._suspected[0]

    def _suspect(self, fault: ZppError) -> None:
        """Stage 0 has gone; the receiving thread breaks the pipeline with what it hears next, or with this."""
        with self._lock:
            if self._suspected is None:
                self._suspected = fault, time.monotonic() + CAUSE_S

    def _take(self, received: c.Received) -> None:
        if received.epoch != self._outward.party.epoch:
            return
        match received.control:
            case c.Reply(number=number, stage=stage):
                self._settle(number, stage, received.payload)
            case c.Fault(number=number) as fault:
                self._fail(number, fault.as_error())

    def _settle(self, number: int, stage: int, payload: bytes) -> None:
        with self._lock:
            call = self._open.get(number)
            if call is None:
                return
            call.payloads[stage] = payload
            if len(call.payloads) < call.wanted:
                return
            del self._open[number]
        call.future.set_result([call.payloads[stage] for stage in sorted(call.payloads)])

    def _fail(self, number: int | None, fault: ZppError) -> None:
        """Fail the call of that number, once; without a number, fail them all."""
        if number is None:
            self._break(fault)
            return
        with self._lock:
            call = self._open.pop(number, None)
        if call is None:
            self._note(f"too late to change the answer: {fault.message}")
        else:
            call.future.set_exception(fault)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = next((call for call in self._open.values() if call.deadline < now), None)
        if late is not None:
            awaited = range(self._num_stages) if late.wanted > 1 else [self._num_stages - 1]
            silent = ", ".join(str(stage) for stage in awaited if stage not in late.payloads)
            raise stage_error(
                f"{late.method} was not answered in {late.allowed_s:g} s by stage {silent}",
                "See its log, and those of the stages before it: one of them is busy, stopped or hung.",
            )

    def _check_beats(self) -> None:
        """Whether a stage stands still while a step is open."""
        with self._lock:
            steps = [call.method for call in self._open.values() if not call.long]
        if not steps:
            self._view.rest()
            return
        still = hung(self._view.stages(), self._beat_timeout_s)
        if still is not None:
            what = f"has not moved for {still.beat_age_s:.1f} s" if still.beat_age_s else "is silent"
            raise stage_error(
                f"stage {still.stage} hangs ({still.process}): its main loop {what}, last heard"
                f" {still.heard_age_s:.1f} s ago, while {steps[0]} waits for it (epoch {still.epoch})",
                f"It may take {self._beat_timeout_s:g} s (--beat-timeout). Its log, or py-spy, says where it stands.",
            )

    def _break(self, fault: ZppError) -> None:
        with suppress(queue.Empty):
            fault = self._told.get_nowait().as_error()
        if not self._closing.is_set() and self._fail_all(fault):
            self._on_fault(fault)

    def _fail_all(self, fault: ZppError) -> bool:
        """Fail the open calls and all that are to come; False when that was done already."""
        with self._lock:
            if self.fault is not None:
                return False
            self.fault = fault
            calls, self._open = list(self._open.values()), {}
        for call in calls:
            call.future.set_exception(fault)
        return True
