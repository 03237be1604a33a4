# SPDX-License-Identifier: Apache-2.0
"""Sending from the head: calls, and the control messages of the head itself."""

from __future__ import annotations

from concurrent.futures import Future

from zpptool.errors import ZppError
from zpptool.places import HEAD
from zpptool.ring.delivery import Delivery
from zpptool.ring.head.epochs import Failed
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCall, PendingCalls
from zpptool.ring.head.watchdog import Watchdog
from zpptool.ring.messages import Call, Control, encode_control
from zpptool.wire.link import LinkSender
from zpptool.wire.link_errors import PeerLost, StaleEpoch
from zpptool.wire.message.framing import Kind


class CallSender:
    """Sends to stage 0. Any thread may use it.

    Args:
        downstream: the link to stage 0.
        calls: the table that each call is entered into.
        watchdog: informed of the loss of stage 0.
        events: where other faults of sending are posted.
        step_timeout_s: how long stage 0 may take to accept a message, where no other limit is given.
    """

    def __init__(
        self,
        downstream: LinkSender,
        calls: PendingCalls,
        watchdog: Watchdog,
        events: EventQueue,
        step_timeout_s: float,
    ) -> None:
        self._calls = calls
        self._watchdog = watchdog
        self._events = events
        self._step_timeout_s = step_timeout_s
        self._delivery = Delivery(downstream, self._raise_if_broken)

    def ask(
        self,
        call: PendingCall,
        payload: bytes,
        setup: int | None = None,
        setting_up: int | None = None,
        only_in: int | None = None,
    ) -> Future[list[bytes]]:
        """Enter a call and send it.

        Args:
            call: the call; its future is returned.
            payload: its arguments in the engine's encoding.
            setup: its index among the set-up calls; None for any other call.
            setting_up: see `PendingCalls.add`.
            only_in: see `PendingCalls.add`.
        """
        call.future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: only the head settles it
        try:
            number, epoch = self._calls.add(call, setting_up=setting_up, only_in=only_in)
        except ZppError as fault:
            call.future.set_exception(fault)
            return call.future
        message = Call(
            number=number, method=call.method, from_all=call.num_answers > 1, long=call.long, setup=setup,
            request=call.request.id, trace=call.request.span.parent,
        )  # fmt: skip
        try:
            self.send(message, payload, epoch=epoch)
        except StaleEpoch as over:
            self._calls.fail(number, over)
        except PeerLost as lost:
            self._watchdog.suspect(lost, epoch)
        except ZppError as fault:
            self._events.post(Failed(fault))
        return call.future

    def send(self, control: Control, payload: bytes = b"", *, epoch: int, timeout_s: float | None = None) -> None:
        """Send one control message.

        Raises:
            StaleEpoch: the epoch is over.
            PeerLost: stage 0 was lost.
            ZppError: (STAGE) stage 0 does not accept it in time; or what broke the pipeline.
        """
        frames = (payload,) if payload else ()
        timeout_s = timeout_s or self._step_timeout_s
        self._delivery.send(
            Kind.CONTROL, encode_control(control), frames, source=HEAD, epoch=epoch, timeout_s=timeout_s
        )

    def _raise_if_broken(self) -> None:
        if self._calls.fault is not None:
            raise self._calls.fault
