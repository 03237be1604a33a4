# SPDX-License-Identifier: Apache-2.0
"""The head's sender with a timeline; it takes the plain one's place only where a timeline is wanted."""

from __future__ import annotations

import time
from concurrent.futures import Future

from zpptool.ring.head.call_sender import CallSender
from zpptool.ring.head.pending_calls import PendingCall
from zpptool.ring.messages import Control
from zpptool.ring.timeline import Timeline

LANES = 8
"""Calls of the head overlap, so consecutive calls are drawn in this many lanes by turns."""


class TracedCallSender:
    """Records each call as one span from its start to its answer, and sending it as another.

    Args:
        sender: what sends.
        timeline: where the spans go.
    """

    def __init__(self, sender: CallSender, timeline: Timeline) -> None:
        self._sender = sender
        self._timeline = timeline

    def ask(
        self,
        call: PendingCall,
        payload: bytes,
        setup: int | None = None,
        setting_up: int | None = None,
        only_in: int | None = None,
    ) -> Future[list[bytes]]:
        """See `CallSender.ask`. The call's span ends when its future is done."""
        began = time.monotonic_ns()
        future = self._sender.ask(call, payload, setup, setting_up, only_in)
        sent = time.monotonic_ns()
        lane, number = 1 + call.number % LANES, call.number
        self._timeline.span("sending the call", began, sent, lane=lane, step=number, bytes=len(payload))
        future.add_done_callback(
            lambda _done: self._timeline.span(call.method, began, time.monotonic_ns(), lane=lane, step=number)
        )
        return future

    def send(self, control: Control, payload: bytes = b"", *, epoch: int, timeout_s: float | None = None) -> None:
        """See `CallSender.send`."""
        self._sender.send(control, payload, epoch=epoch, timeout_s=timeout_s)
