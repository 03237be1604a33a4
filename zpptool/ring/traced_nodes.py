# SPDX-License-Identifier: Apache-2.0
"""The places of the ring, with a timeline of what they do and what they wait for.

They are subclasses, taken only when a timeline is wanted: without one nothing of it is on the way of a message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from zpptool.ring import messages as c
from zpptool.ring.head.node import HeadNode
from zpptool.ring.head.pending_calls import OpenCall
from zpptool.ring.stage.node import StageNode
from zpptool.ring.timeline import Timeline
from zpptool.wire.message.framing import Buffer, Message

LANES = 8
"""The head's open calls overlap: each is drawn in the next of so many lanes."""


class TracedStageNode(StageNode):
    """A stage: each call as one span and, within it, waiting for tensors and sending; between them, waiting for calls.

    Attributes:
        timeline: set before the first call.
    """

    timeline: Timeline
    _step = -1

    def calls(self) -> Iterator[c.Received]:
        """As ever, with a span for each call and for the wait before it."""
        waited = time.monotonic_ns()
        for received in super().calls():
            began = time.monotonic_ns()
            assert isinstance(received.control, c.Call)
            self._step = received.control.number
            self.timeline.span("waiting for a call", waited, began, step=self._step)
            yield received
            waited = time.monotonic_ns()
            self.timeline.span(received.control.method, began, waited, step=self._step)

    def receive_tensors(self) -> Message:
        """As ever; the wait is a span."""
        began = time.monotonic_ns()
        message = super().receive_tensors()
        self.timeline.span("waiting for tensors", began, time.monotonic_ns(), step=self._step)
        return message

    def send_tensors(self, header: bytes, frames: Sequence[Buffer]) -> Callable[[], None]:
        """As ever; the time until the link has taken them is a span."""
        began = time.monotonic_ns()
        wait = super().send_tensors(header, frames)
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        self.timeline.span("sending tensors", began, time.monotonic_ns(), step=self._step, bytes=nbytes)
        return wait

    def reply(self, call: c.Call, payload: bytes) -> None:
        """As ever; the time until the link has taken it is a span."""
        began = time.monotonic_ns()
        super().reply(call, payload)
        self.timeline.span("sending the answer", began, time.monotonic_ns(), step=call.number, bytes=len(payload))

    def close(self) -> None:
        """As ever; what is left of the timeline is written, before it too: an end that takes long is cut short."""
        self.timeline.flush()
        super().close()
        self.timeline.flush()


class TracedHeadNode(HeadNode):
    """The head: each call as a span from its start to its answer.

    Attributes:
        timeline: set before the first call.
    """

    timeline: Timeline

    def _ask(self, call: OpenCall, payload: bytes, *options: Any, **more: Any) -> Future[list[bytes]]:
        """As ever; the span ends when the answer is there."""
        began = time.monotonic_ns()
        future = super()._ask(call, payload, *options, **more)
        taken = time.monotonic_ns()
        lane, number = 1 + call.number % LANES, call.number
        self.timeline.span("sending the call", began, taken, lane=lane, step=number, bytes=len(payload))
        future.add_done_callback(
            lambda _done: self.timeline.span(call.method, began, time.monotonic_ns(), lane=lane, step=number)
        )
        return future

    def close(self) -> None:
        """As ever; what is left of the timeline is written, before it too: an end that takes long is cut short."""
        self.timeline.flush()
        super().close()
        self.timeline.flush()
