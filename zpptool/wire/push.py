# SPDX-License-Identifier: Apache-2.0
"""The sending end of a hop.

The invariant: a message is handed to ZeroMQ whole or not at all, only while exactly one peer is connected, and takes
the next sequence number only then. What is torn half way by an interrupt takes the link down with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import zmq

from zpptool.wire.deadline import Deadline
from zpptool.wire.endpoint import HIGH_WATER_MARK, Endpoint
from zpptool.wire.messages import Buffer, Kind, Limits, Message, check_sizes, encode
from zpptool.wire.sockets import Context

_LAST = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)

ZERO_COPY_BYTES = 1 << 20
"""Frames from this size on are sent from the caller's memory. Shorter ones are copied before `send` returns, which
costs less than tracking them (benchmarks/wire.py)."""


class Sent:
    """A message that was accepted for sending."""

    __slots__ = ("_link", "_trackers", "sequence")

    def __init__(self, link: PushLink, sequence: int, trackers: Sequence[zmq.MessageTracker]) -> None:
        self._link = link
        self._trackers = trackers
        self.sequence = sequence

    @property
    def done(self) -> bool:
        """Whether the memory handed to `send` may be written again. It says nothing about the peer having read it."""
        return all(tracker.done for tracker in self._trackers)

    def wait(self, timeout_s: float) -> None:
        """Return when the memory handed to `send` may be written again.

        Raises:
            LinkTimeout: it is still being sent when the deadline passes; it may not be written yet.
        """
        if not self._trackers:
            return
        deadline = Deadline(timeout_s)
        for tracker in self._trackers:
            try:
                tracker.wait(deadline.remaining_s())
            except zmq.NotDone:
                raise self._link.timed_out(deadline, f"take the bytes of message {self.sequence}") from None


class PushLink(Endpoint):
    """The sending end of a hop. It binds by default: with no peer there, a send waits instead of losing messages."""

    def __init__(
        self,
        endpoint: str,
        *,
        stage: int,
        peer: str,
        bind: bool = True,
        high_water_mark: int = HIGH_WATER_MARK,
        limits: Limits | None = None,
        context: Context | None = None,
    ) -> None:
        """Open the link.

        Args:
            endpoint: `tcp://host:port` (`*` for any free port) or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the other side as errors name it, for example `stage 1`.
            high_water_mark: messages that may wait here; as many may wait at the peer.
            limits: what the peer will accept; larger messages are refused here.
            context: a ZeroMQ context to share; by default the link has its own, and an I/O thread with it.

        Raises:
            ZppError: the endpoint cannot be used (exit 5).
        """
        super().__init__(
            zmq.PUSH,
            endpoint,
            stage=stage,
            peer=peer,
            bind=bind,
            high_water_mark=high_water_mark,
            limits=limits,
            context=context,
        )
        self._session = secrets.randbits(32)
        self._sequence = 0
        self._changes_seen = 0

    def send(
        self,
        kind: Kind,
        header: bytes,
        frames: Sequence[Buffer] = (),
        *,
        source: int | None = None,
        epoch: int = 0,
        timeout_s: float,
    ) -> Sent:
        """Hand one message to ZeroMQ, waiting while there is no peer or its queue is full.

        Frames of `ZERO_COPY_BYTES` and more are read while they are sent: leave that memory alone until `Sent.wait`
        returns. (It is kept alive; nothing can be freed too early.)

        Args:
            source: the place the message comes from; by default this link's.

        Raises:
            LinkTimeout: no peer, or a peer that reads nothing, until the deadline. Nothing was sent.
            LinkError: more than one peer is connected, or the link is closed.
            WireError: the message is larger than the limits allow.
        """
        deadline = Deadline(timeout_s)
        check_sizes(len(header), [memoryview(frame).nbytes for frame in frames], self.limits)
        self._enter(deadline)
        try:
            sequence = self._sequence
            parts = encode(
                kind,
                header,
                frames,
                source=self.stage if source is None else source,
                epoch=epoch,
                sequence=sequence,
                session=self._session,
            )
            return Sent(self, sequence, self._deliver(parts, deadline))
        finally:
            self._leave()

    def relay(self, message: Message, timeout_s: float) -> Sent:
        """Pass a received message on: source and epoch are kept, the sequence number is this link's own."""
        return self.send(
            message.kind,
            message.header,
            message.frames,
            source=message.source,
            epoch=message.epoch,
            timeout_s=timeout_s,
        )

    def _deliver(self, parts: Sequence[Buffer], deadline: Deadline) -> list[zmq.MessageTracker]:
        """Send the parts to the one peer; the trackers of the large ones."""
        while True:
            if self.peers != 1:
                self._wait_for_peer(deadline)
            trackers = self._try_send(parts)
            if trackers is not None:
                return trackers
            if not deadline.remaining_ms():
                raise self.timed_out(deadline, f"take message {self._sequence}")
            self._wait(deadline)

    def _wait_for_peer(self, deadline: Deadline) -> None:
        """Return when exactly one peer is connected. ZeroMQ's own queue to a peer outlives that peer by a moment: what
        is sent in that moment would be lost."""
        count = self._peers.wait_for_one(deadline)
        if self._closing:
            raise self.fault(f"the link to {self.peer} was closed while waiting")
        if count > 1:
            raise self.fault(
                f"{count} receivers are connected where {self.peer} alone should be",
                "They would get every other message: replicate whole pipelines, never one stage.",
            )
        if count == 0:
            raise self.timed_out(deadline, f"take message {self._sequence}")

    def _try_send(self, parts: Sequence[Buffer]) -> list[zmq.MessageTracker] | None:
        """As `_deliver`, or None when nobody takes the message now. Counts it when somebody does."""
        changes = self._peers.changes
        if changes != self._changes_seen:  # or it may be given to a connection that has ended
            self._changes_seen = changes
            if not self._ready():
                return None
        last = len(parts) - 1
        trackers: list[zmq.MessageTracker] = []
        cut_off = False
        self._torn = True
        for index, part in enumerate(parts):
            large = memoryview(part).nbytes >= ZERO_COPY_BYTES
            flags = _LAST if index == last else _MORE
            try:
                tracker = self._socket.send(part, flags, copy=not large, track=large)
            except zmq.Again:
                if index == 0:
                    self._torn = False
                    return None
                # The peer went away inside this message. libzmq now drops what is still due of a message, so give it
                # the rest: otherwise it would drop the beginning of the next one.
                cut_off = True
                continue
            if tracker is not None:
                trackers.append(tracker)
        if not cut_off:
            self._sequence += 1
        self._torn = False
        return None if cut_off else trackers
