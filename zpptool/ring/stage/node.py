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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from zpptool.deadline import Deadline
from zpptool.errors import ZppError, invalid_error, stage_error
from zpptool.ring import messages as c
from zpptool.ring.stage.losses import RunEpoch
from zpptool.ring.stage.relay import AskedToLeave, RingBroken, RingOver, StageListener
from zpptool.wire.link import LinkTimeout, PeerLost, Sent, StaleEpoch
from zpptool.wire.link_errors import WireError, WireFault
from zpptool.wire.message import tensors
from zpptool.wire.message.consistency import TensorSchema
from zpptool.wire.message.framing import Buffer, Kind, Message

GOOD_BYE_S = 5.0
"""How long a stage that leaves for good may take to say where its place is from then on."""
REMIND_S = 20.0
"""How often a stage that waits for the ring to close says so again."""

__all__ = ["AskedToLeave", "RingBroken", "RingOver", "StageNode"]

_Wanted = TypeVar("_Wanted")


class StageNode(StageListener):
    """What a stage's main loop and its engine see of the ring."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._schema = TensorSchema()

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

    def on_stuck(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the main loop stands still at a step of an epoch that is over."""
        self._on_stuck = callback

    def on_moved(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called, from the receiving thread, with the address where the stage before is from now on."""
        self._on_moved = callback

    def leave(self, asked: AskedToLeave) -> None:
        """Say good-bye: where another one has this place, whoever receives from it is told where."""
        if asked.moved_to:
            word = c.encode(c.Moved(asked.moved_to))
            try:
                self._downstream.send(Kind.CONTROL, word, source=self.stage, timeout_s=GOOD_BYE_S)
            except WireFault as silent:
                self._note(f"{self._downstream.peer} could not be told where this place has moved: {silent.message}")

    def calls(self) -> Iterator[c.Received]:
        """The head's calls, in order, until it says stop.

        A call that was on its way when the stop came is not done.

        Raises:
            AskedToLeave: (AGAIN, or OK) the head has asked this stage to leave.
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

    def send_tensors(self, header: bytes, frames: Sequence[Buffer]) -> Callable[[], None]:
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

    @property
    def doing(self) -> RunEpoch:
        """The run and the epoch of the call that is being done."""
        return self._doing

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
