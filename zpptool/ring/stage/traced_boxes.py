# SPDX-License-Identifier: Apache-2.0
"""A stage's inbox and outbox with a timeline; they take the plain ones' places only where a timeline is wanted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from zpptool.ring.messages import Call, Control, Received, Reply
from zpptool.ring.stage.inbox import StageInbox
from zpptool.ring.stage.losses import RunEpoch
from zpptool.ring.stage.order import SendOrder
from zpptool.ring.stage.outbox import StageOutbox
from zpptool.ring.timeline import Timeline
from zpptool.wire.link import Sent
from zpptool.wire.message.framing import Buffer, Message


class TracedInbox:
    """Records each call from when it is taken to when the next control message is waited for, and each wait.

    Args:
        inbox: what receives.
        timeline: where the spans go.
    """

    def __init__(self, inbox: StageInbox, timeline: Timeline) -> None:
        self._inbox = inbox
        self._timeline = timeline
        self._call: tuple[Call, int] | None = None

    @property
    def doing(self) -> RunEpoch:
        """See `StageInbox.doing`."""
        return self._inbox.doing

    @property
    def call(self) -> int:
        """See `StageInbox.call`."""
        return self._inbox.call

    @property
    def epoch(self) -> RunEpoch:
        """See `StageInbox.epoch`."""
        return self._inbox.epoch

    def next_control(self, timeout_s: float | None) -> Received:
        """See `StageInbox.next_control`."""
        waiting = time.monotonic_ns()
        if self._call is not None:
            call, began = self._call
            self._call = None
            self._timeline.span(call.method, began, waiting, step=call.number)
        received = self._inbox.next_control(timeout_s)
        if isinstance(received.control, Call):
            taken = time.monotonic_ns()
            self._call = received.control, taken
            self._timeline.span("waiting for a call", waiting, taken, step=self.call)
        return received

    def next_tensors(self, timeout_s: float) -> Message:
        """See `StageInbox.next_tensors`."""
        began = time.monotonic_ns()
        message = self._inbox.next_tensors(timeout_s)
        self._timeline.span("waiting for tensors", began, time.monotonic_ns(), step=self.call)
        return message


class TracedOutbox:
    """Records how long the link takes to accept each answer and each tensor message.

    Args:
        outbox: what sends.
        timeline: where the spans go.
    """

    def __init__(self, outbox: StageOutbox, timeline: Timeline) -> None:
        self._outbox = outbox
        self._timeline = timeline

    def send_control(self, control: Control, payload: bytes = b"", *, timeout_s: float | None = None) -> None:
        """See `StageOutbox.send_control`."""
        began = time.monotonic_ns()
        self._outbox.send_control(control, payload, timeout_s=timeout_s)
        if isinstance(control, Reply):
            ended = time.monotonic_ns()
            self._timeline.span("sending the answer", began, ended, step=control.number, bytes=len(payload))

    def send_tensors(self, order: SendOrder, header: bytes, frames: Sequence[Buffer]) -> Sent:
        """See `StageOutbox.send_tensors`."""
        began = time.monotonic_ns()
        sent = self._outbox.send_tensors(order, header, frames)
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        self._timeline.span("sending tensors", began, time.monotonic_ns(), step=order.call, bytes=nbytes)
        return sent
