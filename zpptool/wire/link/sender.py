# SPDX-License-Identifier: Apache-2.0
"""The sending end of a link.

The invariant: a message is handed to ZeroMQ whole or not at all, only for the one receiver that this end has welcomed,
only within that receiver's window, and takes the next sequence number only then. A message that an interrupt tears
closes the link.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import zmq

from zpptool.deadline import Deadline
from zpptool.places import place_name
from zpptool.wire.link.admission import LinkAdmission
from zpptool.wire.link.counters import LinkCounters
from zpptool.wire.link.endpoint import Endpoint
from zpptool.wire.link.link_options import DEFAULT_OPTIONS, LinkOptions
from zpptool.wire.link.outbound import Envelope
from zpptool.wire.link.sent import Sent, Tracker
from zpptool.wire.link.session import Candidate, Session
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Buffer, Kind, Message, check_sizes, decode
from zpptool.wire.protocol.link_messages import (
    LINK_MESSAGE_LIMITS,
    Acknowledgement,
    Hello,
    LinkMessage,
    Notification,
    Party,
    Pong,
    Refused,
    decode_link_message,
)
from zpptool.wire.sealed.sender import SealedSender
from zpptool.wire.sockets import tcp_host

_LAST = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)

ZERO_COPY_BYTES = 1 << 20
"""Frames from this size on are sent from the caller's memory. Shorter ones are copied before `send` returns, which
costs less than tracking them (benchmarks/wire.py)."""


class LinkSender(Endpoint):
    """The sending end of a link. It binds. While no receiver is welcome, a send waits instead of losing messages.

    Attributes:
        counters: what the link has done so far.
    """

    _socket_type = zmq.ROUTER
    _binds = True

    def __init__(self, endpoint: str, *, stage: int, peer: int, options: LinkOptions = DEFAULT_OPTIONS) -> None:
        """Open the link.

        Args:
            endpoint: `tcp://host:port` (`*` for any free port) or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the one place whose receiver is welcome.
            options: see `LinkOptions`.

        Raises:
            ZppError: the endpoint cannot be used, or not without keys (exit 5).
        """
        self.counters = LinkCounters()
        self._admission = LinkAdmission(self, options)
        self._on_notification: Callable[[bytes], None] = lambda _payload: None
        self._on_lost: Callable[[], None] = lambda: None
        super().__init__(
            endpoint,
            stage=stage,
            peer=peer,
            party=options.party or Party(stage, run_id=secrets.token_hex(8)),
            options=options,
            max_frame_bytes=LINK_MESSAGE_LIMITS.max_frame_bytes,
        )

    @property
    def state(self) -> str:
        """`waiting` for its receiver, `connected` or `lost`."""
        return "lost" if self._admission.was_lost else "connected" if self._admission.session else "waiting"

    @property
    def sequence(self) -> int:
        """The last message sent in this epoch; -1 for none."""
        return self._admission.credit.sent - 1

    @property
    def queue(self) -> int:
        """Messages of this session that the receiver has not acknowledged."""
        return self._admission.credit.sent - self._admission.credit.taken

    @property
    def payload_channel(self) -> str:
        """How large frames are sent now: `socket`, or the name of a side channel (`zpptool.wire.local`)."""
        session = self._admission.session
        return session.outbound.payload_channel if session else "socket"

    def begin(self, run_id: str, epoch: int) -> None:
        """Begin a run, or a later epoch of it: the receiver is welcomed (again), and messages count from 0.

        Receivers that greeted too early are judged again. Beginning an epoch that has begun already does nothing. Never
        blocks.
        """
        self._turn.post(lambda: self._admission.begin(run_id, epoch))

    def on_notification(self, callback: Callable[[bytes], None]) -> None:
        """Have `callback` called with each payload that the receiver sends by `LinkReceiver.notify`.

        It is called from any thread; it must not block, nor use this link.
        """
        self._on_notification = callback

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the receiver of messages of this epoch is lost.

        It is called from any thread; it must not block, nor use this link.
        """
        self._on_lost = callback

    def ping(self) -> None:
        """Measure a round trip, which `counters` then has, and notice a receiver that is gone. Never blocks."""
        self._turn.post(self._admission.probe)

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
        """Hand one message to ZeroMQ, waiting while there is no receiver or its window is full.

        Frames of `ZERO_COPY_BYTES` and more are read while they are sent: do not change that memory until `Sent.wait`
        returns. (The link keeps it alive; it cannot be freed too early.)

        Args:
            kind: what header and frames mean.
            header: opaque to the link.
            frames: the payload.
            source: the place that the message comes from; by default this link's.
            epoch: the epoch that the message belongs to; by default the link's.
            run_id: the run that it belongs to; by default the link's.
            timeout_s: the deadline of the call, in seconds.

        Returns:
            an object that reports when the memory of the frames may be changed.

        Raises:
            LinkTimeout: no receiver, or one whose window stayed full, until the deadline. Nothing was sent.
            PeerLost: the receiver of messages of this epoch is lost.
            LinkRefused: the receiver was started with another plan.
            StaleEpoch: the message's epoch is not the link's.
            LinkError: the link is closed.
            WireError: the message is larger than the limits allow.
        """
        deadline = Deadline(timeout_s)
        sizes = [memoryview(frame).nbytes for frame in frames]
        admission, turn = self._admission, self._turn
        check_sizes(len(header), sizes, admission.limits)
        nbytes = len(header) + sum(sizes)
        turn.enter(deadline)
        try:
            while True:
                session = admission.session
                if session is None or turn.has_tasks or not admission.credit.allows(nbytes):
                    session = self._await_room(nbytes, deadline, epoch, run_id)
                else:
                    self._refuse_stale(epoch, run_id)
                sequence = admission.credit.sent
                place = self.stage if source is None else source
                envelope = Envelope(kind, place, self.party.epoch, sequence, session.number)
                began = time.monotonic()
                trackers = self._hand_over(session, envelope, header, frames, nbytes)
                if trackers is not None:
                    self.counters.sent(nbytes, time.monotonic() - began)
                    return Sent(self, sequence, trackers)
        finally:
            turn.leave()

    def relay(self, message: Message, timeout_s: float) -> Sent:
        """Forward a received message: source and epoch are kept, the sequence number is this link's own."""
        return self.send(
            message.kind,
            message.header,
            message.frames,
            source=message.source,
            epoch=message.epoch,
            timeout_s=timeout_s,
        )

    def check(self) -> None:
        """Raise the fault of this link, if it has one.

        Raises:
            PeerLost: the receiver of messages of this epoch is lost.
            LinkRefused: the receiver was started with another plan.
        """
        if self._admission.was_lost:
            raise self.faults.lost()
        if self._admission.refusal is not None:
            raise self._admission.refusal

    def _await_room(self, nbytes: int, deadline: Deadline, epoch: int | None, run_id: str | None) -> Session:
        """The session, as soon as a message of that size, epoch and run may be sent in it."""
        admission, turn = self._admission, self._turn
        if turn.has_tasks:
            turn.run_tasks()
        self._refuse_stale(epoch, run_id)
        if admission.session and admission.credit.allows(nbytes):
            return admission.session
        began = time.monotonic()
        try:
            while admission.session is None or not admission.credit.allows(nbytes):
                self.check()
                if not deadline.remaining_ms():
                    raise self.faults.timed_out(deadline, f"take message {admission.credit.sent}")
                if self._readable():
                    self._read_link_messages()
                else:
                    turn.wait(deadline)
                self._refuse_stale(epoch, run_id)
        finally:
            self.counters.wait_s += time.monotonic() - began
        return admission.session

    def _refuse_stale(self, epoch: int | None, run_id: str | None) -> None:
        """Raise `StaleEpoch` for a message of an epoch or a run that is not the link's."""
        if epoch not in (None, self.party.epoch) or run_id not in (None, self.party.run_id):
            raise self.faults.stale_to_send(epoch)

    def _hand_over(
        self, session: Session, envelope: Envelope, header: bytes, frames: Sequence[Buffer], nbytes: int
    ) -> list[Tracker] | None:
        """Send a message by the Unix socket, or by ZeroMQ to the welcome receiver.

        libzmq refuses the first part, the receiver's address, or accepts the whole of what follows it.

        Returns:
            the trackers of the parts that are sent from the caller's memory; None when the receiver is gone.
        """
        turn, credit = self._turn, self._admission.credit
        first, rest, transfers = session.outbound.encode(envelope, header, frames)
        unix_socket = session.outbound.unix_socket
        if unix_socket is not None:
            turn.torn = True
            if rest == () and len(first) == 1 and unix_socket.send(first[0], credit.taken):
                credit.spend(nbytes)
                turn.torn = False
                return []
            turn.torn = False
            unix_socket.sent_by_zeromq(envelope.sequence)
        trackers: list[Tracker] = [*transfers]
        begun = False
        for parts in chain((first,), rest):
            turn.torn = True
            try:
                self._socket.send(session.receiver.identity, _MORE)
            except zmq.ZMQError:
                turn.torn = False
                self._admission.end_session()
                return None
            if not begun:
                credit.spend(nbytes)
                begun = True
            last = len(parts) - 1
            for index, part in enumerate(parts):
                large = memoryview(part).nbytes >= ZERO_COPY_BYTES
                tracker = self._socket.send(part, _LAST if index == last else _MORE, copy=not large, track=large)
                if tracker is not None:
                    trackers.append(tracker)
        turn.torn = False
        return trackers

    def _read_link_messages(self) -> None:
        while self._readable():
            identity, *parts = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            connection = parts[0].get(zmq.SRCFD) if parts else -1
            user = parts[0].get("User-Id") if parts and self._keyed else None
            self._process(identity.bytes, int(connection), user, [part.buffer for part in parts])

    def _process(self, identity: bytes, connection: int, user: object, parts: Sequence[Buffer]) -> None:
        """Process one link message. `user` is the place whose key the connection has; None where there are no keys."""
        admission = self._admission
        try:
            envelope = decode(parts, LINK_MESSAGE_LIMITS)
            message = decode_link_message(envelope.header)
        except WireError as error:
            admission.refuse(identity, Refused(error.message, plan=False))
            return
        if isinstance(message, Hello):
            claimed = place_name(message.party.stage)
            if user in (None, claimed):
                admission.on_hello(Candidate(identity, connection, message))
            else:
                admission.refuse(identity, Refused(f"it has the key of {user} and calls itself {claimed}", plan=False))
            return
        session = admission.session
        if session is None or identity != session.receiver.identity:
            return
        match message:
            case Acknowledgement(count=count):
                if envelope.session == session.number:
                    admission.on_taken(identity, count)
            case Pong(at=at):
                self.counters.round_trip(time.monotonic() - at)
            case Notification(payload=payload):
                self._on_notification(payload)
            case Refused(reason=reason, plan=plan):
                admission.refusal = self.faults.refused(f"{self.peer} refuses this link", reason, plan=plan)
                self._refusals.warning(admission.refusal.message)

    def _send_link_message(self, identity: bytes, message: LinkMessage, session: int = 0) -> bool:
        """Send a link message; False when ZeroMQ refuses it: that connection is gone, or reads nothing."""
        try:
            self._socket.send_multipart([identity, self._encoded(message, session)], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _open_sealed(self) -> SealedSender:
        """The sender's end of a sealed channel, on another port of the link's address."""
        host = tcp_host(self.endpoint)
        lost = partial(self._turn.post, self._admission.on_sealed_lost)
        return SealedSender("0.0.0.0" if host == "*" else host, lost)

    def _on_peer_lost(self) -> None:
        self._refusals.last_error = self.faults.lost().message
        self._on_lost()

    def _on_connected(self) -> None:
        """Nothing to do: the receiver greets first."""

    def _on_disconnected(self, connection: int) -> None:
        if self._admission.on_disconnected(connection):
            self._monitor.ping_for_a_while()

    def _end_side_channels(self) -> None:
        self._admission.close()

    def _connection_detail(self) -> str:
        if self._admission.holds_receivers:
            return "it is connected and waits for the run to begin here"
        return super()._connection_detail()
