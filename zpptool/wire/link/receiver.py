# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a link.

The invariant: `recv` returns the message that was due in the session that the sender has welcomed this end to, within
the limits, or raises an error that names what is wrong; either way the link is ready for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
import zmq

from zpptool.deadline import Deadline
from zpptool.wire.link.arrivals import Arrivals
from zpptool.wire.link.endpoint import Endpoint
from zpptool.wire.link.fragments import largest_part
from zpptool.wire.link.inbound import Inbound
from zpptool.wire.link.link_options import DEFAULT_OPTIONS, LinkOptions
from zpptool.wire.link.receiver_session import ReceiverSession
from zpptool.wire.link_errors import SealedChannelLost, WireError, WireFault
from zpptool.wire.message.framing import Kind, Message
from zpptool.wire.protocol.handshake import of_other_runs, unfit
from zpptool.wire.protocol.link_messages import (
    Acknowledgement,
    Hello,
    Hold,
    LinkMessage,
    Notification,
    Party,
    Ping,
    Pong,
    Refused,
    Welcome,
    decode_link_message,
)
from zpptool.wire.sealed.offer import NAME as SEALED
from zpptool.wire.sealed.offer import VERSION as SEALED_VERSION
from zpptool.wire.sealed.receiver import SealedReceiver
from zpptool.wire.security.exposure import require
from zpptool.wire.sockets import check_endpoint, tcp_host

_DONTWAIT = int(zmq.DONTWAIT)
NOTIFICATIONS_LINGER_S = 0.5
"""How long a closing link goes on sending notifications to a sender that may be stopped."""
_LAST_READ_S = 0.01
"""libzmq reports the end of a connection a moment before it delivers what arrived last."""


class LinkReceiver(Endpoint):
    """The receiving end of a link. It connects, and keeps trying until the other side is there."""

    _socket_type = zmq.DEALER
    _binds = False

    def __init__(self, endpoint: str, *, stage: int, peer: int, options: LinkOptions = DEFAULT_OPTIONS) -> None:
        """Open the link.

        Args:
            endpoint: what the sender binds, `tcp://host:port` or `ipc:///path`.
            stage: the place this end belongs to, a stage index or `HEAD`.
            peer: the place that the sender has to have.
            options: see `LinkOptions`.

        Raises:
            ZppError: the endpoint cannot be used, or not without keys (exit 5).
        """
        self._interrupted = False
        self._pending: Message | WireFault | None = None
        self._on_welcome: Callable[[str, int], None] = lambda _run, _epoch: None
        self._session = ReceiverSession()
        self._inbound = Inbound(options.limits, self._open_sealed, shared=options.shared_memory)
        super().__init__(
            endpoint,
            stage=stage,
            peer=peer,
            party=options.party or Party(stage),
            options=options,
            max_frame_bytes=largest_part(options.limits),
        )
        self._arrivals = Arrivals(self._socket, self._turn, self._readable, self._inbound, options.limits.max_frames)

    @property
    def state(self) -> str:
        """`waiting` to be welcomed, `connected`, `lost` or `refused`."""
        return self._session.state

    @property
    def refusal_reason(self) -> str:
        """Why one side last refused the other; empty for never, and once the sender has welcomed this end."""
        return self._session.refusal_reason

    @property
    def sequence(self) -> int:
        """The last message received in this epoch; -1 for none."""
        return self._session.due - 1

    def close(self, linger_s: float = NOTIFICATIONS_LINGER_S) -> None:
        """Close the link. Notifications are sent for up to `linger_s` seconds, if the sender is still there."""
        super().close(0.0 if self._session.disconnected else linger_s)

    def on_welcome(self, callback: Callable[[str, int], None]) -> None:
        """Have `callback` called with run and epoch whenever the sender welcomes this end.

        It is called from any thread; it must not block, nor use this link.
        """
        self._on_welcome = callback

    def notify(self, payload: bytes) -> None:
        """Send a few bytes to the owner of the sending end (`LinkSender.on_notification`), in order. Never blocks.

        Nothing is sent to a sender that has not welcomed this end, is gone, or reads nothing.
        """
        self._turn.post(lambda: self.connected and self._send_link_message(Notification(payload)))

    def recv(self, timeout_s: float) -> Message:
        """The next message.

        Args:
            timeout_s: the deadline of the call, in seconds.

        Raises:
            LinkTimeout: none arrived before the deadline.
            PeerLost: the sender, which has sent messages in this epoch, is gone, and none of them is left to read.
            LinkRefused: the sender refuses this end, or this end the sender.
            SequenceError: it is not the message that was due. The link continues after it.
            StaleEpoch: it belongs to an epoch that is over.
            WireError: it is malformed; it is dropped.
            LinkError: the link is closed.
        """
        deadline = Deadline(timeout_s)
        turn = self._turn
        turn.enter(deadline)
        try:
            while not self._has_result():
                if not deadline.remaining_ms():
                    raise self.faults.timed_out(deadline, f"send message {self._session.due}")
                turn.wait(deadline)
            result, self._pending = self._pending, None
            if not isinstance(result, Message):
                raise result or self._session.refusal or self.faults.lost()
            acknowledgements = self._session.acknowledgements
            acknowledgements.take(len(result.header) + sum([frame.nbytes for frame in result.frames]))
            if acknowledgements.due:
                self._acknowledge()
            return result
        finally:
            turn.leave()

    def poll(self, timeout_s: float) -> bool:
        """Whether `recv` would return or raise at once: a message or a fault is there before the deadline.

        An `interrupt` ends the wait.
        """
        deadline = Deadline(timeout_s)
        self._turn.enter(deadline)
        try:
            while not self._has_result():
                if self._interrupted or not deadline.remaining_ms():
                    self._interrupted = False
                    return False
                self._turn.wait(deadline)
            return True
        finally:
            self._turn.leave()

    def interrupt(self) -> None:
        """Have the current `poll`, or else the next one, return at once."""
        self._interrupted = True
        self._waiter.wake()

    def ping(self) -> None:
        """Nothing to do: the sender pings, and this end answers."""

    def greet_again(self) -> None:
        """Forget that one side has refused this link, and greet again. Never blocks."""
        self._turn.post(self._forget_refusal)

    def move(self, endpoint: str) -> None:
        """Connect to the sender at another address; the session with the previous one is over. Never blocks.

        Raises:
            ZppError: (ADDRESS) it is no address, or one that others can reach, and there are no keys.
        """
        check_endpoint(endpoint, bind=False)
        require(endpoint, self.options.security)
        self._turn.post(lambda: self._move(endpoint))

    def _has_result(self) -> bool:
        """Whether there is something for `recv`. Link messages are processed on the way."""
        if self._turn.has_tasks:
            self._turn.run_tasks()
        if self._session.acknowledgements.due:
            self._acknowledge()
        if self._pending is None:
            self._pending = self._next()
        if self._pending is None and self._session.is_over:
            self._socket.poll(int(_LAST_READ_S * 1000))
            self._pending = self._next()
        return self._pending is not None or self._session.is_over

    def _next(self) -> Message | WireFault | None:
        """The next message that has arrived, or what is wrong with it; None for none."""
        while True:
            try:
                if self._inbound.sealed is None or (message := self._inbound.poll()) is None:
                    if (parts := self._arrivals.next()) is None:
                        return None
                    message = self._inbound.take(parts)
                if message is None:
                    continue
                if message.kind is not Kind.LINK:
                    return self._checked(message)
                self._process(decode_link_message(message.header), message.session)
            except WireError as error:
                return self.faults.refused_message(error)
            except SealedChannelLost as error:
                self._refusals.warning(f"{self.peer} ({self.endpoint}) is lost: {error.message}")
                self._inbound.end()
                self._session.on_disconnected()
                return self.faults.lost()
            except WireFault as fault:
                return fault

    def _checked(self, message: Message) -> Message:
        check = self._session.check
        if check is None:
            raise WireError("it came before a welcome; the peer is not the other end of a link.")
        if message.epoch != self.party.epoch:
            raise self.faults.stale_received(message.epoch)
        fault = check.accept(message.session, message.sequence)
        if fault is not None:
            raise self.faults.out_of_sequence(fault, message)
        return message

    def _process(self, message: LinkMessage, session: int) -> None:
        """Process one link message of the sender."""
        match message:
            case Welcome():
                self._on_welcomed(message, session)
            case Hold(reason=reason):
                self._session.hold = reason
            case Refused(reason=reason, plan=plan):
                self._refuse(f"{self.peer} refuses this link", reason, plan=plan)
            case Ping(at=at):
                self._send_link_message(Pong(at))
                if self._session.acknowledgements.pending:  # so that an idle link shows an empty queue
                    self._acknowledge()

    def _on_welcomed(self, welcome: Welcome, session: int) -> None:
        theirs = welcome.party
        follows = self.options.follows
        refused = unfit(theirs, self.party, self._awaited, follows=follows)
        same_run = not of_other_runs(theirs, self.party)
        if refused is None and same_run and self.sequence >= 0 and theirs.epoch == self.party.epoch:
            if follows:
                raise self.faults.lost()
            refused = Refused(f"messages of epoch {theirs.epoch} came before; another epoch has to begin", plan=False)
        if refused is not None:
            self._send_link_message(refused)
            self._refuse(f"{self.peer} is refused", refused.reason, plan=refused.plan)
            return
        if same_run and theirs.epoch < self.party.epoch:
            raise self.faults.stale_welcome(theirs.epoch)
        self.party = msgspec.structs.replace(self.party, run_id=theirs.run_id, epoch=theirs.epoch)
        self._session.begin(session, welcome.window)
        self._arrivals.forget()
        problem = self._inbound.begin(welcome.offers)
        if self._inbound.unix_socket is not None:
            self._inbound.unix_socket.watch_with(self._waiter.watched)
        if problem is not None:
            self._refusals.warning(f"{self.peer} ({self.endpoint}) sends through the socket: {problem}")
        self._on_welcome(theirs.run_id, theirs.epoch)

    def _open_sealed(self, offer: str) -> SealedReceiver:
        def report(reason: str) -> None:
            self._refusals.warning(
                f"{self.peer} ({self.endpoint}) cannot be reached at the port of the sealed channel ({reason}): bulk"
                " tensors stay under CURVE, which is slower"
            )

        return SealedReceiver(offer, tcp_host(self.endpoint), partial(self._turn.post, lambda: None), report)

    def _move(self, endpoint: str) -> None:
        if endpoint == self.endpoint:
            return
        with suppress(zmq.ZMQError):  # there is no connection to end
            self._socket.disconnect(self.endpoint)
        self._inbound.end()
        self._arrivals.forget()
        self.endpoint = endpoint
        self._session.disconnected = self._session.check is not None
        self._keyed = self._protect(endpoint)
        self._socket.connect(endpoint)

    def _forget_refusal(self) -> None:
        self._session.refusal = None
        self._connect_again()

    def _refuse(self, who: str, reason: str, *, plan: bool) -> None:
        self._session.refusal = self.faults.refused(who, reason, plan=plan)
        self._session.refusal_reason = reason
        self._record_refusal(self._session.refusal.message)

    def _on_connected(self) -> None:
        self._session.on_connected()
        offers = self._inbound.offers | ({SEALED: SEALED_VERSION} if self._keyed and self.options.sealed else {})
        self._send_link_message(Hello(self.party, self.options.window, self.options.limits, offers))

    def _on_disconnected(self, connection: int) -> None:
        self._session.on_disconnected()

    def _acknowledge(self) -> None:
        check, acknowledgements = self._session.check, self._session.acknowledgements
        assert check is not None
        if self._send_link_message(Acknowledgement(acknowledgements.taken), check.session):
            acknowledgements.sent()

    def _send_link_message(self, message: LinkMessage, session: int = 0) -> bool:
        """Send a link message; False when ZeroMQ refuses it: too many wait for a sender that reads nothing."""
        try:
            self._socket.send(self._encoded(message, session), _DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _read_link_messages(self) -> None:
        """Nothing to do: the sender's link messages are in order with its other ones, and `_next` processes them."""

    def _end_side_channels(self) -> None:
        self._inbound.end()

    def _connection_detail(self) -> str:
        return f"it is connected, but {self._session.hold}" if self._session.hold else super()._connection_detail()
