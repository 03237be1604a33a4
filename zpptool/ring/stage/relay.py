# SPDX-License-Identifier: Apache-2.0
"""The receiving half of a stage's place: the thread that relays and sorts, and what it makes of losses.

The invariant: this thread never waits for another place. What cannot be passed on at once waits aside, so that it hears
of a new epoch whatever becomes of the stages behind it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from zpptool.errors import ExitCode, ZppError, stage_error
from zpptool.ring import messages as c
from zpptool.ring.delivery import POLL_S, Delivery
from zpptool.ring.heartbeat import Beat, Pulse, own_status
from zpptool.ring.stage.losses import Losses, RunEpoch
from zpptool.ring.status import COMPUTING, StageStatus, aged
from zpptool.wire.link import LinkError, LinkReceiver, LinkRefused, LinkSender, LinkTimeout, PeerLost, StaleEpoch
from zpptool.wire.link_errors import WireError, WireFault
from zpptool.wire.message.framing import Kind, Message
from zpptool.wire.protocol.sequence import SequenceError

PATIENCE_S = 10.0
"""How much longer than the head a stage waits for a ring that is not whole: the head knows more of why it is not."""
REGREET_S = 0.3
"""How long a stage that was refused waits before it greets again: the one before it may still hold on to another."""
RELAY_S = 0.005
"""How long a relayed message may wait for room at once; after that it waits aside, and nobody for it."""


class RingOver(ZppError):
    """The head has stopped the run, so what was being waited for will not come."""


class AskedToLeave(ZppError):
    """The head has asked this stage to leave; it does so between two calls, in whichever epoch.

    Attributes:
        moved_to: where another process has its place from then on; empty where it comes again itself.
        partition: the layer ranges of its next life; empty where they stay what they are.
    """

    def __init__(self, leave: c.Leave) -> None:
        told = f"its place moves to {leave.moved_to}, and it ends" if leave.moved_to else "it leaves, and comes again"
        super().__init__(f"{told}: {leave.why}", exit_code=ExitCode.OK if leave.moved_to else ExitCode.AGAIN)
        self.moved_to = leave.moved_to
        self.partition = leave.partition


class RingBroken(LinkError):
    """The head has stopped the run because the pipeline is broken."""


class StageListener:
    """One stage's two links, the thread that serves them, and the queues that it fills.

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
        upstream: LinkReceiver,
        downstream: LinkSender,
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
        self._backlog: deque[tuple[RunEpoch, int, Message]] = deque()
        self._facts: c.StageFacts | None = None
        self._refused_since: float | None = None
        self._control: queue.SimpleQueue[tuple[RunEpoch, c.Received] | ZppError] = queue.SimpleQueue()
        self._tensors: queue.SimpleQueue[tuple[RunEpoch, Message] | ZppError | None] = queue.SimpleQueue()
        self._doing = RunEpoch("", 0)
        self._over: ZppError | None = None
        self._on_over: Callable[[ZppError], None] = lambda _why: None
        self._on_stuck: Callable[[], None] = lambda: None
        self._on_moved: Callable[[str], None] = lambda _address: None
        self._rumour: str | None = None
        self._joined = threading.Event()
        self._closing = threading.Event()
        upstream.on_welcome(self._begin)
        downstream.on_told(self._hear_told)
        downstream.on_lost(upstream.interrupt)
        self._thread = threading.Thread(target=self._serve, name=f"stage-{stage}-receive", daemon=True)

    def _begin(self, run_id: str, epoch: int) -> None:
        """This stage was welcomed, to a new run or to a new epoch: so is the next one, and so both go round the ring.
        Whoever waits for tensors of an older epoch is woken. Called where nothing may wait."""
        self._downstream.begin(run_id, epoch)
        self._losses.begun_anew()
        self._rumour = None
        self._refused_since = None
        self._tensors.put(None)

    @property
    def _standing(self) -> RunEpoch:
        """The run and the epoch that this stage was welcomed to last."""
        party = self._upstream.party
        return RunEpoch(party.run_id, party.epoch)

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
            broken = stage_error(f"stage {self.stage} cannot receive any more: {type(cause).__name__}: {cause}")
            if self._recovery_s:
                broken.exit_code = ExitCode.FAILURE  # whoever keeps this stage up starts it anew
            self._give_up(broken)

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
    def _sending(self) -> RunEpoch:
        party = self._downstream.party
        return RunEpoch(party.run_id, party.epoch)

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
        patience_s = self._recovery_s if self._joined.is_set() else max(self._recovery_s, self._start_timeout_s)
        if now - self._refused_since > patience_s:
            return False
        self._closing.wait(REGREET_S)
        self._upstream.greet_again()
        return True

    def _lose(self, fault: WireFault) -> None:
        """A neighbour was lost: tell the head, once an epoch, and wake whoever waits for something of that epoch."""
        link = self._downstream if fault.endpoint == self._downstream.endpoint else self._upstream
        standing = RunEpoch(link.party.run_id, link.party.epoch if fault.epoch is None else fault.epoch)
        if self._losses.meet(standing, fault):
            self._note(f"epoch {standing.epoch} is over: {fault.message}")
            self._tell_head(fault, lost=standing.epoch)
            self._tensors.put(None)

    def _give_up(self, fault: ZppError) -> None:
        if self._closing.is_set():
            return
        if self._rumour is not None:
            fault.hint = f"It began elsewhere: {self._rumour}."
        self._tell_head(fault, lost=self._standing.epoch if fault.exit_code is ExitCode.FAILURE else None)
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
        self._end_if_stuck()
        self._downstream.ping()
        heard_at, others = self._heard
        own = own_status(self.stage, self._layers, self.pulse, self._downstream)
        since_s = time.monotonic() - heard_at
        self._upstream.tell(c.encode(c.Report(stages=(own, *(aged(other, since_s) for other in others)))))

    def _end_if_stuck(self) -> None:
        """A main loop that stands still at a step of an epoch that is over keeps the ring from becoming whole."""
        over = self._doing != self._standing
        if self._recovery_s and over and self.pulse.phase == COMPUTING and self.pulse.age_s > self._beat_timeout_s:
            self._note(f"it has stood still for {self.pulse.age_s:.0f} s at a step of an epoch that is over: it ends")
            self._on_stuck()

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
            case c.Leave():
                if not self._is_last:
                    self._relay(message)
                self._hear_leave(received.control)
            case c.Moved(address=address):
                self._follow(address)
            case _:
                if not self._is_last:
                    self._relay(message)
                self._control.put((self._standing, received))

    def _hear_leave(self, leave: c.Leave) -> None:
        if self._facts is not None and self._facts.seat in leave.seats:
            self._control.put(AskedToLeave(leave))
        else:
            self._note(f"stage {', '.join(str(seat.stage) for seat in leave.seats)} is asked to leave: {leave.why}")

    def _follow(self, address: str) -> None:
        """Receive from where the place of the stage before is from now on."""
        self._note(f"{self._upstream.peer} has moved to {address}")
        try:
            self._upstream.move(address)
        except ZppError as fault:
            self._note(f"it cannot be followed there: {fault.message}")
            return
        self._on_moved(address)

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
