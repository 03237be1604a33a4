# SPDX-License-Identifier: Apache-2.0
"""The sending end of a hop.

The invariant: a message is handed to ZeroMQ whole or not at all, only for the one peer that this end has welcomed, only
within that peer's window, and takes the next sequence number only then. What is torn half way by an interrupt takes the
link down with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

import zmq

from zpptool.deadline import Deadline
from zpptool.wire.link.admission import LinkAdmission
from zpptool.wire.link.outbound import Envelope
from zpptool.wire.link.session import Sent, Session
from zpptool.wire.link_errors import StaleEpoch
from zpptool.wire.message.framing import Buffer, Kind, Message, check_sizes

_LAST = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)

ZERO_COPY_BYTES = 1 << 20
"""Frames from this size on are sent from the caller's memory. Shorter ones are copied before `send` returns, which
costs less than tracking them (benchmarks/wire.py)."""


class LinkSender(LinkAdmission):
    """The sending end of a hop. It binds; with no welcome peer there, a send waits instead of losing messages."""

    @property
    def queue(self) -> int:
        """Messages of this session that were sent, and that the receiver has not said to have handed on."""
        return self._credit.sent - self._credit.taken

    @property
    def sequence(self) -> int:
        """The last message sent in this epoch; -1 for none."""
        return self._credit.sent - 1

    @property
    def way(self) -> str:
        """How large frames go now: `socket`, or the name of a way beside it (`zpptool.wire.local`)."""
        return self._session.outbound.way if self._session else "socket"

    def send(
        self,
        kind: Kind,
        header: bytes,
        frames: Sequence[Buffer] = (),
        *,
        source: int | None = None,
        epoch: int | None = None,
        run_id: str | None = None,
        timeout_s: float,
    ) -> Sent:
        """Hand one message to ZeroMQ, waiting while there is no peer or its window is used up.

        Frames of `ZERO_COPY_BYTES` and more are read while they are sent: leave that memory alone until `Sent.wait`
        returns. (It is kept alive; nothing can be freed too early.)

        Args:
            source: the place the message comes from; by default this link's.
            epoch: the epoch that the message belongs to; by default the link's.
            run_id: the run that it belongs to; by default the link's.

        Raises:
            LinkTimeout: no peer, or a peer that takes nothing, until the deadline. Nothing was sent.
            PeerLost: the peer was sent something in this epoch, and has gone.
            LinkRefused: the peer that came was given another plan.
            StaleEpoch: the message's epoch is not the link's.
            LinkError: the link is closed.
            WireError: the message is larger than the limits allow.
        """
        deadline = Deadline(timeout_s)
        sizes = [memoryview(frame).nbytes for frame in frames]
        check_sizes(len(header), sizes, self._accepted)
        nbytes = len(header) + sum(sizes)
        self._enter(deadline)
        try:
            while True:
                session = self._session
                if session is None or self._chores or not self._credit.allows(nbytes):
                    session = self._await_room(nbytes, deadline, epoch, run_id)
                else:
                    self._refuse_stale(epoch, run_id)
                sequence = self._credit.sent
                place = self.stage if source is None else source
                envelope = Envelope(kind, place, self.party.epoch, sequence, session.number)
                began = time.monotonic()
                trackers = self._hand_over(session, envelope, header, frames, nbytes)
                if trackers is not None:
                    self.tally.sent(nbytes, time.monotonic() - began)
                    return Sent(self, sequence, trackers)
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

    def check(self) -> None:
        """Ask how the link stands.

        Raises:
            PeerLost: the peer was sent something in this epoch, and has gone.
            LinkRefused: the peer that came was given another plan.
        """
        if self._was_lost:
            raise self.lost()
        if self._refusal is not None:
            raise self._refusal

    def _await_room(self, nbytes: int, deadline: Deadline, epoch: int | None, run_id: str | None) -> Session:
        """The session, when there is one and a message of that size, epoch and run may be sent in it."""
        if self._chores:
            self._catch_up()
        self._refuse_stale(epoch, run_id)
        if self._session and self._credit.allows(nbytes):
            return self._session
        began = time.monotonic()
        try:
            while self._session is None or not self._credit.allows(nbytes):
                self.check()
                if not deadline.remaining_ms():
                    raise self.timed_out(deadline, f"take message {self._credit.sent}")
                if self._readable():
                    self._hear()
                else:
                    self._wait(deadline)
                self._refuse_stale(epoch, run_id)
        finally:
            self.tally.wait_s += time.monotonic() - began
        return self._session

    def _refuse_stale(self, epoch: int | None, run_id: str | None) -> None:
        """Raise `StaleEpoch` for a message of an epoch or a run that is not the link's."""
        if epoch not in (None, self.party.epoch) or run_id not in (None, self.party.run_id):
            raise self._made(StaleEpoch, f"a message of epoch {epoch} is not for {self.peer} ({self.endpoint})")

    def _hand_over(
        self, session: Session, envelope: Envelope, header: bytes, frames: Sequence[Buffer], nbytes: int
    ) -> list[zmq.MessageTracker] | None:
        """Give a message to the shortcut, or to ZeroMQ for the welcome peer; the trackers of its large parts. None when
        he has gone.

        libzmq refuses the first part, the peer's address, or takes the whole of what follows it.
        """
        first, rest = session.outbound.encode(envelope, header, frames)
        shortcut = session.outbound.shortcut
        if shortcut is not None:
            self._torn = True
            if rest == () and len(first) == 1 and shortcut.send(first[0], self._credit.taken):
                self._credit.spend(nbytes)
                self._torn = False
                return []
            self._torn = False
            shortcut.went_by_socket(envelope.sequence)
        trackers: list[zmq.MessageTracker] = []
        begun = False
        for parts in chain((first,), rest):
            self._torn = True
            try:
                self._socket.send(session.guest.identity, _MORE)
            except zmq.ZMQError:
                self._torn = False
                self._end_session()
                return None
            if not begun:
                self._credit.spend(nbytes)
                begun = True
            last = len(parts) - 1
            for index, part in enumerate(parts):
                large = memoryview(part).nbytes >= ZERO_COPY_BYTES
                tracker = self._socket.send(part, _LAST if index == last else _MORE, copy=not large, track=large)
                if tracker is not None:
                    trackers.append(tracker)
        self._torn = False
        return trackers
