# SPDX-License-Identifier: Apache-2.0
"""The head's place in the ring: it sends calls to stage 0 and takes the replies from the last stage.

Every call has a deadline. A call that a stage cannot do fails alone. A deadline that passes breaks the pipeline: each
open call fails with the one error that names the cause, and so does every later call. So does a stage or a link that is
lost, unless losses are survived: then the open calls come to nothing, and the next epoch begins (`lifecycle.py`).

Only the receiving thread asks what follows from what has happened, and does it; other threads tell it (`_happen`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress

from zpptool.errors import ZppError, stage_error, usage_error
from zpptool.partition import Partition
from zpptool.ring import messages as c
from zpptool.ring.delivery import POLL_S
from zpptool.ring.head import epochs as lc
from zpptool.ring.head.event_loop import HeadListener
from zpptool.ring.head.pending_calls import OpenCall, drop
from zpptool.ring.head.view import RingSnapshot
from zpptool.wire.link_errors import PeerLost, StaleEpoch, WireFault
from zpptool.wire.message.framing import HEAD, Kind

STOP_ROUND_S = 2.0
"""How long the word that the run is over may take round the ring before the head leaves all the same."""
IDLE_S = 1.0
"""A ring that was whole for so long and has no call under way has nothing to do."""


def _refuse_partition(_partition: Partition) -> tuple[int, ...]:
    raise usage_error("the layers of this pipeline's stages cannot move while it runs", "Stop it and start it anew.")


class HeadNode(HeadListener):
    """What the head's engine sees of the ring."""

    _prepare_partition: Callable[[Partition], tuple[int, ...]] = staticmethod(_refuse_partition)

    def gather(self, agreed: Mapping[str, str]) -> tuple[c.StageFacts, ...]:
        """Call the roll and let the stages in, or refuse them.

        Args:
            agreed: what has to be the same on every stage, by name.

        Raises:
            ZppError: (STAGE) the roll call did not come round in time; (INVALID) the stages do not fit together.
        """
        self._agreed = agreed
        deadline = time.monotonic() + self._start_timeout_s
        self._thread.start()
        self._note(f"waiting for stage 0 at {self._outward.endpoint}")
        try:
            self._say(c.RollCall(stages=()), epoch=self._state.epoch, timeout_s=self._start_timeout_s)
        except StaleEpoch:  # a stage was lost already, and the roll is called again
            pass
        except PeerLost as fault:
            self._happen(lc.Lost(self._state.epoch, fault))
        except ZppError as fault:
            self._happen(lc.Failed(fault))
        self._note(f"roll call: waiting for the last stage at {self._homeward.endpoint}")
        while self.whole is None and self.fault is None:
            if time.monotonic() > deadline and self._state.epoch == lc.FIRST_EPOCH:
                self._happen(lc.Failed(self._roll_call_is_late()))
            self._moved.wait(POLL_S)
            self._moved.clear()
        if self.fault is not None:
            raise self.fault
        stages = self._gathered
        self._note("all stages answered: " + ", ".join(f"{f.stage} on {f.host}" for f in stages))
        return stages

    def on_fault(self, callback: Callable[[ZppError], None]) -> None:
        """Have `callback` called once, from the receiving thread, when the pipeline breaks."""
        self._on_fault = callback

    def on_moved(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called, from the receiving thread, with the address where the last stage is from now on."""
        self._on_moved = callback

    def call(
        self, method: str, payload: bytes, *, from_all: bool, timeout_s: float | None = None, epoch: int | None = None
    ) -> Future[list[bytes]]:
        """Ask every stage to do something.

        Args:
            method: what to do, in the engine's words.
            payload: its arguments, opaque here.
            from_all: whether every stage's answer is wanted, or only the last one's.
            timeout_s: how long it may take. None for a step: it has the step timeout, and a stage that stands still
                at it is taken to hang.
            epoch: the one epoch that the call is for; by default whichever there is.

        Returns:
            the payloads of the answers, in the order of the stages (one, when only the last was wanted). It fails with
            `StaleEpoch` when the ring is not, or not any more, whole, and otherwise with a `ZppError` (STAGE) that
            names the stage or the link at fault.
        """
        call = OpenCall(
            method,
            wanted=self._num_stages if from_all else 1,
            allowed_s=self._step_timeout_s if timeout_s is None else timeout_s,
            long=timeout_s is not None,
        )
        return self._ask(call, payload, only_in=epoch)

    def set_up(self, method: str, payload: bytes, *, timeout_s: float) -> Future[list[bytes]]:
        """Ask every stage to do something that it has to have done to take part in anything later.

        It outlasts losses: a stage that is lost later on is asked again in its next life, in the same order.

        Returns:
            as `call`, with the answers of all stages; never a `StaleEpoch`.
        """
        call = OpenCall(method, wanted=self._num_stages, allowed_s=timeout_s, long=True)
        return self._setups.add(call, payload)

    def wait_until_whole(self) -> int:
        """The epoch in which the ring is whole, as soon as it is.

        Raises:
            ZppError: (STAGE) the pipeline is broken.
        """
        return self._calls.wait_until_whole()

    def begin_epoch(self, why: str) -> None:
        """Begin the next epoch of a ring that survives losses: what is under way is dropped by whoever has it, every
        link counts anew, and the set-up is repeated. Returns at once; `wait_until_whole` waits.

        Args:
            why: what each open call fails with, as a `StaleEpoch`.
        """
        epoch = self._state.epoch
        drop(self._calls.shut(), epoch, why)
        self._happen(lc.Lost(epoch, stage_error(why)))

    @property
    def may_recover(self) -> bool:
        """Whether the loss of a stage is survived, and so its leaving."""
        return self._state.may_recover

    def look(self) -> RingSnapshot:
        """Who is there, and whether the ring has settled since somebody was not."""
        epoch, seats = self.whole, tuple(facts.seat for facts in self._gathered)
        rests = not self._calls.busy and time.monotonic() - self._whole_at > IDLE_S
        settled = epoch is not None and (rests or self._recoveries.answered_in == epoch)
        over = self._stopping or self._closing.is_set()
        fault = self.fault or (stage_error("the pipeline is told to stop") if over else None)
        return RingSnapshot(seats, epoch if settled else None, fault)

    @property
    def plan_digest(self) -> str:
        """Of the plan that the pipeline was started from; empty for none."""
        return self._outward.party.digest

    def knocks(self, stage: int) -> int:
        """How often another process has asked for a stage's place, and was turned away as it is taken."""
        before = self._view.stages()[stage - 1].link if stage else None
        return before.knocks if before is not None else 0

    def ask_to_leave(self, leave: c.Leave) -> None:
        """Ask whoever holds these seats to leave and to come again. Their leaving ends the epoch as a loss does, and
        is told as what it is. Returns at once; that the word gets there is for `look` to show."""
        epoch = self.whole
        if epoch is None:
            return
        places = f"stage {', '.join(str(seat.stage) for seat in leave.seats)}"
        purpose = f"its place moves to {leave.moved_to}" if leave.moved_to else "to come again"
        if leave.partition:
            purpose += f" with layers {' '.join(f'{start}-{end}' for start, end in leave.partition)}"
        self._recoveries.announce(f"{places} was asked to leave, {purpose}: {leave.why}")
        self._note(f"{places} is asked to leave: {leave.why}")
        with suppress(ZppError):  # then that epoch is over, or the ring, and both are noticed
            self._say(leave, epoch=epoch)

    def facts(self) -> tuple[c.StageFacts, ...]:
        """What the stages said of themselves when the roll was called last."""
        return self._gathered

    def on_partition(self, prepare: Callable[[Partition], tuple[int, ...]]) -> None:
        """Have `prepare` called before layers move: it raises a `ZppError` if they cannot lie so, makes ready what
        depends on it, and tells which stages have to come again."""
        self._prepare_partition = prepare

    def on_admit(self, amended: Callable[[tuple[c.StageFacts, ...]], Mapping[str, bytes]]) -> None:
        """Have `amended` called, from the receiving thread, with the stages that are let in, before they are set up;
        it tells what to ask them, by the methods of set-up calls, where that depends on who owns which layers."""
        self._on_admit = amended

    def prepare_partition(self, partition: Partition) -> tuple[int, ...]:
        """Which stages have to come again for the layers to lie so; see `on_partition`."""
        return self._prepare_partition(partition)

    def count_recomputed(self, tokens: int) -> None:
        """So many tokens have to be computed again after a loss."""
        self._recoveries.recomputed_tokens += tokens

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
        self._homeward.interrupt()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._setups.break_all(stage_error("the head has ended"))
        self._outward.close()
        self._homeward.close()
