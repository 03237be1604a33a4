# SPDX-License-Identifier: Apache-2.0
"""A stage's place in the ring.

One thread receives. It relays what is on its way round (calls and stops onward, replies and faults to the head) before
anything else, so a stage that computes holds nobody up; what is for this stage goes into two first-in first-out
queues, one for control and one for tensors. A call goes down the ring ahead of the tensors of its step, and both
queues keep the order of the link, so the n-th call that wants tensors and the n-th tensor message belong together.

Both queues are bounded in fact by what the head keeps in flight: it starts no new step before an old one is answered.

Where losses are survived, a neighbour that has gone ends the epoch and nothing else: the head is told, whoever waits
for something of that epoch is woken with `StaleEpoch`, and the stage waits to be welcomed to the next one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from zpptool.errors import ExitCode, ZppError, invalid_error, stage_error
from zpptool.pipeline.ring import control as c
from zpptool.pipeline.ring.loss import Losses, Standing
from zpptool.pipeline.ring.neighbour import POLL_S, Delivery
from zpptool.pipeline.ring.pulse import Beat, Pulse, own_status
from zpptool.pipeline.ring.status import StageStatus, aged
from zpptool.wire import tensors
from zpptool.wire.consistency import TensorSchema
from zpptool.wire.deadline import Deadline
from zpptool.wire.errors import SequenceError, WireError, WireFault
from zpptool.wire.link import LinkError, LinkRefused, LinkTimeout, PeerLost, PullLink, PushLink, Sent, StaleEpoch
from zpptool.wire.messages import Buffer, Kind, Message

REMIND_S = 20.0
"""How often a stage that waits for the ring to close says so again."""
PATIENCE_S = 10.0
"""How much longer than the head a stage waits for a ring that is not whole: the head knows more of why it is not."""
REGREET_S = 0.3
"""How long a stage that was refused waits before it greets again: the one before it may still hold on to another."""
RELAY_S = 0.005
"""How long a relayed message may wait for room at once; after that it waits aside, and nobody for it."""

_Wanted = TypeVar("_Wanted")


class RingOver(ZppError):
    """The head has stopped the run, so what was being waited for will not come."""


class RingBroken(LinkError):
    """The head has stopped the run because the pipeline is broken."""


class StageNode:
    """One stage's two links and the thread that serves them.

    Args:
        stage: this stage's place.
        upstream: receives from the stage before (from the head, on stage 0).
        downstream: sends to the next stage (to the head, on the last one).
        is_last: whether `downstream` leads to the head.
        start_timeout_s: how long to wait for the neighbours and for the head's verdict.
        step_timeout_s: how long to wait for the tensors of a step, and for a neighbour to take a message.
        note: is told, in words, what this stage waits for.
        layers: the half-open range that it owns.
        recovery_s: how long the head waits for a lost stage; 0 where a loss ends the run.
        beat_timeout_s: how long the main loop may stand still at a call of an epoch that is over.

    Attributes:
        stage: its place.
        pulse: what its main loop does; whoever runs it keeps that up.
    """

    def __init__(
        self,
        stage: int,
        upstream: PullLink,
        downstream: PushLink,
        *,
        is_last: bool,
        start_timeout_s: float,
        step_timeout_s: float,
        note: Callable[[str], None],
        layers: tuple[int, int] | None = None,
        recovery_s: float = 0.0,
        beat_timeout_s: float = 60.0,
    ) -> None:
        self.stage = stage
        self.pulse = Pulse()
        self._schema = TensorSchema()
        self._layers = layers
        self._heard: tuple[float, tuple[StageStatus, ...]] = (0.0, ())
        self._beat = Beat(self._tell_how_it_fares, f"stage-{stage}-beat")
        self._upstream = upstream
        self._downstream = downstream
        self._outbox = Delivery(downstream, self._raise_if_over)
        self._is_last = is_last
        self._start_timeout_s = start_timeout_s
        self._step_timeout_s = step_timeout_s
        self._note = note
        self._recovery_s = recovery_s
        self._beat_timeout_s = beat_timeout_s
        self._losses = Losses()
        self._backlog: deque[tuple[Standing, int, Message]] = deque()
        self._facts: c.StageFacts | None = None
        self._refused_since: float | None = None
        self._control: queue.SimpleQueue[tuple[Standing, c.Received] | ZppError] = queue.SimpleQueue()
        self._tensors: queue.SimpleQueue[tuple[Standing, Message] | ZppError | None] = queue.SimpleQueue()
        self._doing = Standing("", 0)
        self._over: ZppError | None = None
        self._on_over: Callable[[ZppError], None] = lambda _why: None
        self._rumour: str | None = None
        self._joined = threading.Event()
        self._closing = threading.Event()
        upstream.on_welcome(self._begin)
        downstream.on_told(self._hear_told)
        downstream.on_lost(upstream.interrupt)
        self._thread = threading.Thread(target=self._serve, name=f"stage-{stage}-receive", daemon=True)

    def join(self, facts: c.StageFacts) -> None:
        """Take part in the roll call and wait for the head's verdict.

        Raises:
            ZppError: (INVALID) the head refuses the pipeline; (STAGE) a neighbour or the verdict did not come in time.
        """
        self._facts = facts
        self._thread.start()
        self._beat.start()
        self._note(f"waiting for {self._upstream.peer} at {self._upstream.endpoint}")
        self._await(c.RollCall, f"the roll call from {self._upstream.peer}")
        self._note("waiting for the head's verdict on the roll call")
        verdict = self._await(c.Verdict, "the head's verdict on the roll call")
        self._joined.set()
        self._hear_verdict(verdict)

    def on_over(self, callback: Callable[[ZppError], None]) -> None:
        """Have `callback` called once, from the receiving thread, when the run is over, and told why."""
        self._on_over = callback

    def calls(self) -> Iterator[c.Received]:
        """The head's calls, in order, until it says stop.

        A call that was on its way when the stop came is not done.

        Raises:
            ZppError: (STAGE) a neighbour was lost.
        """
        while True:
            try:
                received = self._next_control(timeout_s=None)
            except RingOver as over:
                self._note(over.message)
                return
            match received.control:
                case c.Call():
                    yield received
                case c.RollCall() as roll:
                    with suppress(StaleEpoch):  # then another roll is called
                        self._answer_roll(roll)
                case c.Verdict() as verdict:
                    self._hear_verdict(verdict)

    def reply(self, call: c.Call, payload: bytes) -> None:
        """Answer a call, if this stage's answer is wanted; raises `StaleEpoch` when the call's epoch is over."""
        if call.from_all or self._is_last:
            self._send(c.Reply(number=call.number, stage=self.stage), payload)

    def fail(self, call: c.Call | None, message: str, detail: str = "") -> None:
        """Tell the head that this stage cannot go on (with `call`, if one was being done)."""
        number = call.number if call else None
        told = f"stage {self.stage}: {message}"
        lost = self._doing.epoch if call is None and self._recovery_s else None
        self._send(c.Fault(stage=self.stage, number=number, message=told, detail=detail, lost=lost))

    def send_tensors(self, header: bytes, frames: list[memoryview]) -> Callable[[], None]:
        """Send a packed tensor dict to the next stage.

        Returns:
            a function that waits until the memory behind `frames` may be changed.

        Raises:
            StaleEpoch: the epoch of the call that is being done is over.
        """
        with self.pulse.at_rest():
            sent = self._deliver(Kind.TENSORS, header, frames, self._step_timeout_s)
        return lambda: sent.wait(self._step_timeout_s)

    def receive_tensors(self) -> Message:
        """The next tensor message of the stage before, in the epoch of the call that is being done.

        Raises:
            RingOver: the run was stopped.
            StaleEpoch: that epoch is over.
            ZppError: (STAGE) it did not come within the step timeout, or that stage was lost.
        """
        began = time.monotonic()
        deadline = Deadline(self._step_timeout_s)
        try:
            with self.pulse.at_rest():
                while True:
                    got = self._tensors.get(timeout=deadline.remaining_s())
                    if isinstance(got, ZppError):
                        raise got
                    if self._standing != self._doing or self._losses.is_lost(self._doing):
                        raise StaleEpoch(f"stage {self.stage}: epoch {self._doing.epoch} is over", stage=self.stage)
                    if got is not None and got[0] == self._doing:
                        return got[1]
        except queue.Empty:
            raise LinkTimeout(
                f"stage {self.stage} has waited {self._step_timeout_s:g} s for the tensors of {self._upstream.peer}",
                stage=self.stage, peer=self._upstream.peer, endpoint=self._upstream.endpoint,
            ) from None  # fmt: skip
        finally:
            self.pulse.receive_s += time.monotonic() - began

    def _begin(self, run_id: str, epoch: int) -> None:
        """This stage was welcomed, to a new run or to a new epoch: so is the next one, and so both go round the ring.
        Whoever waits for tensors of an older epoch is woken. Called where nothing may wait."""
        self._downstream.begin(run_id, epoch)
        self._losses.begun_anew()
        self._rumour = None
        self._refused_since = None
        self._tensors.put(None)

    @property
    def doing(self) -> Standing:
        """The run and the epoch of the call that is being done."""
        return self._doing

    @property
    def _standing(self) -> Standing:
        """The run and the epoch that this stage was welcomed to last."""
        party = self._upstream.party
        return Standing(party.run_id, party.epoch)

    def unpack(self, message: Message, device: Any = None) -> dict[str, Any]:
        """The tensors and plain values of a tensor message, on `device` (a torch device; the CPU if None).

        Raises:
            WireError: (STAGE) it cannot be right; names the stage that sent it.
        """
        try:
            received = tensors.unpack(message.header, message.frames, device=device)
            self._schema.check(message.epoch, received)
            return received
        except WireError as error:
            raise self._upstream.refusal(error) from None

    def close(self) -> None:
        """End the thread and close both links; what was sent before still leaves within the links' linger."""
        self._closing.set()
        self._beat.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._upstream.close()
        self._downstream.close()

    def _await(self, wanted: type[_Wanted], what: str) -> _Wanted:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < self._start_timeout_s:
            try:
                received = self._next_control(timeout_s=min(REMIND_S, self._start_timeout_s - waited))
            except queue.Empty:
                self._note(f"still waiting for {what} ({time.monotonic() - began:.0f} s)")
                continue
            if isinstance(received.control, c.RollCall):
                self._note(f"waiting for {self._downstream.peer} to connect to {self._downstream.endpoint}")
                with suppress(StaleEpoch):  # then another roll is called
                    self._answer_roll(received.control)
            if isinstance(received.control, wanted):
                return received.control
        raise stage_error(
            f"stage {self.stage} has waited {self._start_timeout_s:g} s for {what} at {self._upstream.endpoint}",
            "Is the stage before it running, and is the address right?",
        )

    def _next_control(self, *, timeout_s: float | None) -> c.Received:
        """The next control message of the present epoch; what is left of an older one is dropped."""
        while True:
            got = self._control.get(timeout=timeout_s)
            if isinstance(got, ZppError):
                raise got
            standing, received = got
            if standing == self._standing and not self._losses.is_lost(standing):
                self._doing = standing
                return received

    def _answer_roll(self, roll: c.RollCall) -> None:
        """Add this stage to the roll call and pass it on."""
        assert self._facts is not None
        self._send(c.RollCall(stages=(*roll.stages, self._facts)), timeout_s=self._start_timeout_s)

    def _hear_verdict(self, verdict: c.Verdict) -> None:
        if verdict.reasons:
            raise invalid_error("the head refuses this pipeline: " + "; ".join(verdict.reasons))

    def _send(self, control: c.Control, payload: bytes = b"", *, timeout_s: float | None = None) -> None:
        self._raise_if_over()
        frames = (payload,) if payload else ()
        self._deliver(Kind.CONTROL, c.encode(control), frames, timeout_s or self._step_timeout_s)

    def _deliver(self, kind: Kind, header: bytes, frames: Sequence[Buffer], timeout_s: float) -> Sent:
        """Send in the epoch of what is being done. Where losses are survived, one that has gone ends that epoch."""
        doing = self._doing
        try:
            return self._outbox.send(
                kind, header, frames,
                source=self.stage, epoch=doing.epoch, run_id=doing.run_id, timeout_s=timeout_s,
            )  # fmt: skip
        except PeerLost as lost:
            if not self._recovery_s:
                raise
            self._lose(lost)
            raise StaleEpoch(f"stage {self.stage}: epoch {doing.epoch} is over", stage=self.stage) from lost

    def _raise_if_over(self) -> None:
        if self._over is not None:
            raise self._over
        if self._closing.is_set():
            raise RingOver(f"stage {self.stage} has closed its links", exit_code=ExitCode.STAGE)

    def _serve(self) -> None:
        """The receiving thread: relay, then sort into the queues; of a fault, tell the head and both readers."""
        try:
            self._receive_all()
        except ZppError as fault:
            self._give_up(fault)
        except Exception as cause:  # whatever it is, nobody may go on waiting for this thread
            self._give_up(stage_error(f"stage {self.stage} cannot receive any more: {type(cause).__name__}: {cause}"))

    def _receive_all(self) -> None:
        while not self._closing.is_set() and self._over is None:
            try:
                self._flush()
                if self._upstream.poll(RELAY_S if self._backlog else POLL_S):
                    self._sort(self._upstream.recv(POLL_S))
                else:
                    self._look_around()
            except WireFault as fault:
                if not self._survives(fault):
                    raise

    def _look_around(self) -> None:
        """Whether the next place is still there, and the time to wait for a ring that is not whole not over.

        Raises:
            PeerLost: it is not there.
            ZppError: (STAGE) the time is over.
        """
        self._check_patience()
        if self._losses.is_lost(self._sending):
            return
        try:
            self._downstream.check()
        except PeerLost as lost:
            if self._recovery_s or not self._joined.is_set():
                raise
            self._losses.meet(self._sending, lost)
            self._tell_head(lost)  # who says what becomes of the run

    def _check_patience(self) -> None:
        waited_s, cause = self._losses.waited_s, self._losses.cause
        if self._recovery_s and waited_s > self._recovery_s + PATIENCE_S:
            raise stage_error(
                f"stage {self.stage} has waited {waited_s:.0f} s for the ring to become whole again",
                cause.message if cause else None,
            )

    @property
    def _sending(self) -> Standing:
        party = self._downstream.party
        return Standing(party.run_id, party.epoch)

    def _survives(self, fault: WireFault) -> bool:
        """Whether the stage goes on, in another epoch."""
        if isinstance(fault, StaleEpoch | LinkTimeout):  # what had come was no message, or is none any more
            return True
        if not self._recovery_s:
            return False
        if isinstance(fault, LinkRefused) and fault.exit_code is ExitCode.STAGE:
            return self._greet_again()
        if isinstance(fault, PeerLost | SequenceError | WireError):
            self._lose(fault)
            self._check_patience()
            return True
        return False

    def _greet_again(self) -> bool:
        """One that was refused its place greets again: another one, who is gone or will be, may hold it still."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._recovery_s:
            return False
        self._closing.wait(REGREET_S)
        self._upstream.greet_again()
        return True

    def _lose(self, fault: WireFault) -> None:
        """A neighbour was lost: tell the head, once an epoch, and wake whoever waits for something of that epoch."""
        link = self._downstream if fault.endpoint == self._downstream.endpoint else self._upstream
        standing = Standing(link.party.run_id, link.party.epoch if fault.epoch is None else fault.epoch)
        if self._losses.meet(standing, fault):
            self._note(f"epoch {standing.epoch} is over: {fault.message}")
            self._tell_head(fault, lost=standing.epoch)
            self._tensors.put(None)

    def _give_up(self, fault: ZppError) -> None:
        if self._closing.is_set():
            return
        if self._rumour is not None:
            fault.hint = f"It began elsewhere: {self._rumour}."
        self._tell_head(fault)
        self._end(fault)

    def _tell_head(self, fault: ZppError, lost: int | None = None) -> None:
        """Tell the head by both ways round the ring, one of which may be cut."""
        detail, code = fault.hint or "", fault.exit_code
        told = c.encode(
            c.Fault(stage=self.stage, number=None, message=fault.message, detail=detail, code=code, lost=lost)
        )
        self._upstream.tell(told)
        self._last_word(told)

    def _tell_how_it_fares(self) -> None:
        """Tell the head of this stage and of those after it, as far as they were heard."""
        self._downstream.ping()
        heard_at, others = self._heard
        own = own_status(self.stage, self._layers, self.pulse, self._downstream)
        since_s = time.monotonic() - heard_at
        self._upstream.tell(c.encode(c.Report(stages=(own, *(aged(other, since_s) for other in others)))))

    def _hear_told(self, payload: bytes) -> None:
        """Take in what the next place tells; called where nothing may wait."""
        try:
            told = c.decode_told(payload)
        except msgspec.DecodeError as cause:
            self._note(f"{self._downstream.peer} told something that cannot be read ({cause})")
            return
        if isinstance(told, c.Report):
            self._heard = time.monotonic(), told.stages
            self._beat.soon()
        elif isinstance(told, c.Fault):
            self._upstream.tell(payload)

    def _sort(self, message: Message) -> None:
        if message.kind is Kind.TENSORS:
            self._tensors.put((self._standing, message))
            return
        received = c.decode(
            message.header, message.frames,
            stage=self.stage, peer=self._upstream.peer, endpoint=self._upstream.endpoint, epoch=message.epoch,
        )  # fmt: skip
        match received.control:
            case c.Reply():
                self._relay(message)
            case c.Fault(number=number, message=told, lost=lost):
                if number is None:
                    self._rumour = told
                if lost == self._standing.epoch and self._losses.meet(self._standing, received.control.as_error()):
                    self._tensors.put(None)
                self._relay(message)
            case c.RollCall() as roll if self._joined.is_set():
                assert self._facts is not None
                answered = c.encode(c.RollCall(stages=(*roll.stages, self._facts)))
                self._relay(msgspec.structs.replace(message, header=answered), source=self.stage)
            case c.RollCall():
                self._control.put((self._standing, received))
            case c.Stop(reason=reason, broke=broke):
                self._last_word(message.header)
                told = f"the head has stopped the run: {reason}"
                self._end(RingBroken(told) if broke else RingOver(told, exit_code=ExitCode.STAGE))
            case _:
                if not self._is_last:
                    self._relay(message)
                self._control.put((self._standing, received))

    def _end(self, why: ZppError) -> None:
        """Let whoever waits on this node know that nothing more will come."""
        self._over = why
        self._control.put(why)
        self._tensors.put(why)
        self._on_over(why)

    def _relay(self, message: Message, source: int | None = None) -> None:
        """Pass a message on, behind those that wait aside; one whose epoch is over goes no further."""
        self._backlog.append((self._standing, message.source if source is None else source, message))
        self._flush()

    def _flush(self) -> None:
        """Pass on what waits aside, as far as there is room: this thread has to hear on."""
        while self._backlog and self._over is None:
            standing, source, message = self._backlog[0]
            try:
                self._downstream.send(
                    message.kind, message.header, message.frames,
                    source=source, epoch=standing.epoch, run_id=standing.run_id, timeout_s=RELAY_S,
                )  # fmt: skip
            except LinkTimeout:
                return
            except StaleEpoch:
                pass
            except PeerLost:
                self._backlog.clear()
                raise
            self._backlog.popleft()

    def _last_word(self, header: bytes) -> None:
        """Send what ends the run; whoever it is for may be gone already, which is no fault when all is ending."""
        try:
            self._downstream.send(Kind.CONTROL, header, source=self.stage, timeout_s=POLL_S)
        except WireFault as silent:
            self._note(f"{self._downstream.peer} could not be told of the end: {silent.message}")
