# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a hop.

The invariant: `recv` returns the message that was due, within the limits, or raises an error that names what is wrong
with it; either way the link is ready for the next one.
"""

from __future__ import annotations

import zmq

from zpptool.wire.deadline import Deadline
from zpptool.wire.endpoint import HIGH_WATER_MARK, Endpoint
from zpptool.wire.errors import SequenceError, WireError, place_name
from zpptool.wire.messages import Limits, Message, decode
from zpptool.wire.sequence import SequenceCheck
from zpptool.wire.sockets import Context

_DONTWAIT = int(zmq.DONTWAIT)


class PullLink(Endpoint):
    """The receiving end of a hop. It connects by default, and goes on trying until the other side is there."""

    def __init__(
        self,
        endpoint: str,
        *,
        stage: int,
        peer: str,
        bind: bool = False,
        high_water_mark: int = HIGH_WATER_MARK,
        limits: Limits | None = None,
        late_join: bool = False,
        context: Context | None = None,
    ) -> None:
        """Open the link.

        Args:
            endpoint: what the peer binds, `tcp://host:port` or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the other side as errors name it, for example `stage 0`.
            high_water_mark: messages that may wait here; as many may wait at the peer.
            limits: what this end accepts. A longer frame ends the connection before memory is taken for it.
            late_join: this end was restarted: the sender's count may begin anywhere.
            context: a ZeroMQ context to share; by default the link has its own, and an I/O thread with it.

        Raises:
            ZppError: the endpoint cannot be used (exit 5).
        """
        super().__init__(
            zmq.PULL,
            endpoint,
            stage=stage,
            peer=peer,
            bind=bind,
            high_water_mark=high_water_mark,
            limits=limits,
            context=context,
        )
        self._check = SequenceCheck(late_join=late_join)

    def recv(self, timeout_s: float) -> Message:
        """The next message.

        Raises:
            LinkTimeout: none came before the deadline.
            SequenceError: it is not the one that was due. The link goes on behind it.
            WireError: it cannot be right; it is dropped.
            LinkError: the link is closed.
        """
        deadline = Deadline(timeout_s)
        self._enter(deadline)
        try:
            while (parts := self._try_recv()) is None:
                if not deadline.remaining_ms():
                    raise self.timed_out(deadline, f"send message {self._check.due}")
                self._wait(deadline)
            return self._checked(parts)
        finally:
            self._leave()

    def poll(self, timeout_s: float) -> bool:
        """Whether a message is there before the deadline."""
        deadline = Deadline(timeout_s)
        self._enter(deadline)
        try:
            while not self._ready():
                if not deadline.remaining_ms():
                    return False
                self._wait(deadline)
            return True
        finally:
            self._leave()

    def _checked(self, parts: list[memoryview]) -> Message:
        try:
            message = decode(parts, self.limits)
        except WireError as error:
            raise self.refusal(error) from None
        fault = self._check.accept(message.session, message.sequence)
        if fault is not None:
            raise SequenceError(
                f"{place_name(self.stage).capitalize()} expected message {fault.expected} of {self.peer} "
                f"({self.endpoint}) and got {fault.got}: {fault.text}.",
                stage=self.stage,
                peer=self.peer,
                endpoint=self.endpoint,
                expected=fault.expected,
                got=fault.got,
                received=message,
            )
        return message

    def _try_recv(self) -> list[memoryview] | None:
        """The parts of one message, or None when none is there. Parts past the limit are dropped, all but one."""
        try:
            part = self._socket.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return None
        self._torn = True
        parts = [part.buffer]
        while part.more:
            part = self._socket.recv(_DONTWAIT, copy=False)
            if len(parts) <= self.limits.max_frames + 1:
                parts.append(part.buffer)
        self._torn = False
        return parts
