# SPDX-License-Identifier: Apache-2.0
"""What a stage's main loop sends to the next place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zpptool.ring.delivery import Delivery
from zpptool.ring.messages import Control, encode_control
from zpptool.ring.stage.inbox import StageInbox
from zpptool.ring.stage.losses import RunEpoch
from zpptool.ring.stage.order import SendOrder, with_call
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link import LinkSender, PeerLost, Sent, StaleEpoch
from zpptool.wire.message.framing import Buffer, Kind


class StageOutbox:
    """Sends control messages in the epoch of the call that is being done, and tensors in the one of their order.

    Args:
        stage: the stage's place.
        downstream: the link to the next place.
        inbox: holds the epoch of the call that is being done.
        timeouts: of the stage.
        raise_if_over: raises when the run is over.
        lose: called with the loss of the next place, where losses are survived.
    """

    def __init__(
        self,
        stage: int,
        downstream: LinkSender,
        inbox: StageInbox,
        timeouts: RingTimeouts,
        *,
        raise_if_over: Callable[[], None],
        lose: Callable[[PeerLost], None],
    ) -> None:
        self._stage = stage
        self._inbox = inbox
        self._timeouts = timeouts
        self._raise_if_over = raise_if_over
        self._lose = lose
        self._delivery = Delivery(downstream, raise_if_over)

    def send_control(self, control: Control, payload: bytes = b"", *, timeout_s: float | None = None) -> None:
        """Send a control message; by default within the step timeout.

        Raises:
            StaleEpoch: the epoch is over.
            ZppError: the run is over, or the next place does not accept it in time.
        """
        self._raise_if_over()
        frames = (payload,) if payload else ()
        step_s = self._timeouts.step_s
        self._send(Kind.CONTROL, encode_control(control), frames, self._inbox.doing, timeout_s or step_s)

    def send_tensors(self, order: SendOrder, header: bytes, frames: Sequence[Buffer]) -> Sent:
        """Send a packed tensor dict. Any thread may call this.

        Raises:
            StaleEpoch: the epoch of the order is over.
            ZppError: the run is over, or the next place does not accept it in time.
        """
        header = with_call(order.call, header)
        return self._send(Kind.TENSORS, header, frames, order.session, self._timeouts.step_s)

    def _send(self, kind: Kind, header: bytes, frames: Sequence[Buffer], doing: RunEpoch, timeout_s: float) -> Sent:
        try:
            return self._delivery.send(
                kind, header, frames,
                source=self._stage, epoch=doing.epoch, run_id=doing.run_id, timeout_s=timeout_s,
            )  # fmt: skip
        except PeerLost as lost:
            if not self._timeouts.survives_losses:
                raise
            self._lose(lost)
            raise StaleEpoch(f"stage {self._stage}: epoch {doing.epoch} is over", stage=self._stage) from lost
