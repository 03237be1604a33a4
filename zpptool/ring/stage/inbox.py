# SPDX-License-Identifier: Apache-2.0
"""What a stage's receiving thread hands to its main loop: two queues, one for control messages and one for tensors.

A call goes down the ring ahead of the tensors of its step, and both queues keep the order of the link. So the n-th call
that needs tensors and the n-th tensor message belong together; the number of the call, which tensors carry, verifies
that. Both queues are bounded by what the head keeps in flight: it starts no new step before an old one is answered.
"""

from __future__ import annotations

import queue

import msgspec

from zpptool.deadline import Deadline
from zpptool.errors import ZppError
from zpptool.ring.messages import Call, Received
from zpptool.ring.stage.losses import Losses, RunEpoch
from zpptool.ring.stage.order import split_call
from zpptool.wire.link import LinkReceiver, LinkTimeout, StaleEpoch
from zpptool.wire.link_errors import WireError, WrongCall
from zpptool.wire.message.framing import Message


class StageInbox:
    """Filled by the receiving thread, emptied by the main loop.

    Args:
        stage: the stage's place.
        upstream: the link that the messages arrive on; its epoch is the present one.
        losses: the epochs in which something was lost, whose messages are dropped.

    Attributes:
        doing: the run and the epoch of the control message that the main loop has taken last.
        call: the number of the call that it has taken last; -1 before the first.
    """

    def __init__(self, stage: int, upstream: LinkReceiver, losses: Losses) -> None:
        self._stage = stage
        self._upstream = upstream
        self._losses = losses
        self._control: queue.SimpleQueue[tuple[RunEpoch, Received] | ZppError] = queue.SimpleQueue()
        self._tensors: queue.SimpleQueue[tuple[RunEpoch, Message] | ZppError | None] = queue.SimpleQueue()
        self.doing = RunEpoch("", 0)
        self.call = -1

    @property
    def epoch(self) -> RunEpoch:
        """The present run and epoch: those of the last handshake with the stage before."""
        party = self._upstream.party
        return RunEpoch(party.run_id, party.epoch)

    def put_control(self, received: Received) -> None:
        """Add a control message of the present epoch."""
        self._control.put((self.epoch, received))

    def put_tensors(self, message: Message) -> None:
        """Add a tensor message of the present epoch."""
        self._tensors.put((self.epoch, message))

    def interrupt_calls(self, why: ZppError) -> None:
        """Have `next_control` raise this after the messages before it."""
        self._control.put(why)

    def recheck_epoch(self) -> None:
        """Have a `next_tensors` that waits notice that its epoch is over. Does not wait."""
        self._tensors.put(None)

    def end(self, why: ZppError) -> None:
        """Have both kinds of waits raise this after the messages before it: nothing more will arrive."""
        self._control.put(why)
        self._tensors.put(why)

    def next_control(self, timeout_s: float | None) -> Received:
        """The next control message of the present epoch; older ones are dropped.

        Raises:
            queue.Empty: none arrived in time.
            ZppError: what the receiving thread ended with.
        """
        while True:
            got = self._control.get(timeout=timeout_s)
            if isinstance(got, ZppError):
                raise got
            epoch, received = got
            if epoch == self.epoch and not self._losses.is_lost(epoch):
                self.doing = epoch
                if isinstance(received.control, Call):
                    self.call = received.control.number
                return received

    def next_tensors(self, timeout_s: float) -> Message:
        """The tensor message of the call that is being done, without the number of that call.

        Raises:
            StaleEpoch: the call's epoch is over.
            LinkTimeout: none arrived in time.
            WrongCall: the message that was due belongs to another call.
            ZppError: what the receiving thread ended with.
        """
        deadline = Deadline(timeout_s)
        try:
            while True:
                got = self._tensors.get(timeout=deadline.remaining_s())
                if isinstance(got, ZppError):
                    raise got
                if self.epoch != self.doing or self._losses.is_lost(self.doing):
                    raise StaleEpoch(f"stage {self._stage}: epoch {self.doing.epoch} is over", stage=self._stage)
                if got is not None and got[0] == self.doing:
                    return self._of_this_call(got[1])
        except queue.Empty:
            raise LinkTimeout(
                f"stage {self._stage} has waited {timeout_s:g} s for the tensors of {self._upstream.peer}",
                stage=self._stage, peer=self._upstream.peer, endpoint=self._upstream.endpoint,
            ) from None  # fmt: skip

    def _of_this_call(self, message: Message) -> Message:
        """The message without the number of its call, which has to be the one that is being done."""
        try:
            number, header = split_call(message.header)
        except WireError as error:
            raise self._upstream.faults.refused_message(error) from None
        if number != self.call:
            raise WrongCall(
                f"stage {self._stage} received the tensors of call {number} from {self._upstream.peer} when those of "
                f"call {self.call} were due in epoch {self.doing.epoch}",
                "The two stages disagree on which steps have tensors. Please report this with both stages' logs.",
                stage=self._stage, peer=self._upstream.peer, endpoint=self._upstream.endpoint, epoch=message.epoch,
                sequence=message.sequence,
            )  # fmt: skip
        return msgspec.structs.replace(message, header=header)
