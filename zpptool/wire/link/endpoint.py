# SPDX-License-Identifier: Apache-2.0
"""What both ends of a link have in common: opening the socket, its monitor, its errors, and closing it.

The invariant: one thread at a time uses the socket and the link's state (`SocketTurn`), every wait ends at its deadline
or when the link is closed, and `close` returns within its linger whatever the peer does and from wherever it is called:
it wakes a thread that waits in the link, and a signal handler that interrupted a call leaves the closing to that call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, Self

import zmq

from zpptool.errors import ZppError
from zpptool.log import place_logger
from zpptool.places import HEAD, place_name
from zpptool.wire.link.fragments import most_chunks
from zpptool.wire.link.handshake_failures import Failure, Handshakes, connect_failure, refusal_reason, remote_address
from zpptool.wire.link.link_faults import LinkFaults
from zpptool.wire.link.link_options import LinkOptions
from zpptool.wire.link.monitor import LinkMonitor
from zpptool.wire.link.open_links import OPEN_LINKS
from zpptool.wire.link.refusal_log import RefusalLog
from zpptool.wire.link.socket_turn import SocketTurn
from zpptool.wire.link.waiter import Waiter
from zpptool.wire.message.framing import CHUNK_BYTES, Buffer, Kind, encode
from zpptool.wire.protocol.link_messages import LinkMessage, Party, encode_link_message
from zpptool.wire.security.exposure import protect
from zpptool.wire.sockets import LINGER_S, Context, attach, check_endpoint, make_socket

# Plain integers, as wherever a call is made for each message: the arithmetic of zmq's enums costs more than the call.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
LINK_MESSAGES_QUEUED = 64
"""Link messages that may wait in a socket in addition to the window's messages."""


class Endpoint(ABC):
    """One end of a link. It has its own ZeroMQ context and I/O thread, so that closing it flushes this link only.

    Args:
        address: the endpoint to bind or to connect to.
        stage: the place that this end belongs to.
        peer: the place at the other end.
        party: the identity of this end.
        options: see `LinkOptions`.
        max_frame_bytes: a longer frame ends the connection.

    Attributes:
        stage: the place that this end belongs to.
        peer: the other side by name.
        endpoint: the address between them.
        party: the identity of this end, with the link's current run and epoch.
        options: as they were given.

    Raises:
        ZppError: the endpoint cannot be used, or not without keys (exit 5).
    """

    _socket_type: ClassVar[int]
    _binds: ClassVar[bool]

    def __init__(
        self, address: str, *, stage: int, peer: int, party: Party, options: LinkOptions, max_frame_bytes: int
    ) -> None:
        self.stage = stage
        self.peer = "the head" if peer == HEAD else place_name(peer)
        self.endpoint = address
        self.party = party
        self.options = options
        self._awaited = peer
        self._keyed = False
        self._handshakes = Handshakes(remote_address)
        self._refusals = RefusalLog(place_logger(__name__, stage))
        self._context: Context = zmq.Context()
        window = options.window
        queued = window.messages + LINK_MESSAGES_QUEUED + window.nbytes // CHUNK_BYTES
        self._socket = make_socket(
            self._context,
            self._socket_type,
            # A message that was begun has to be finished. The window limits what is in flight; this only limits what
            # waits for a hostile peer that reads nothing.
            to_send=queued + most_chunks(options.limits, window.messages),
            to_receive=queued,
            max_frame_bytes=max_frame_bytes,
        )
        self._waiter = Waiter(int(self._socket.getsockopt(zmq.FD)))
        self._turn = SocketTurn(self, self._waiter, LINGER_S)
        self._monitor = LinkMonitor(self, self._socket, reads=self._binds)
        OPEN_LINKS.add(self)
        try:
            check_endpoint(address, bind=self._binds)
            self._keyed = self._protect(address)
            self.endpoint = attach(self._socket, address, bind=self._binds)
        except ZppError:
            self.close(0)
            raise

    @property
    @abstractmethod
    def state(self) -> str:
        """The state of the link: `waiting` for its peer, `connected`, `lost`, or `refused` by it."""

    @property
    @abstractmethod
    def sequence(self) -> int:
        """The last message of this epoch that went over the link; -1 for none."""

    @abstractmethod
    def ping(self) -> None:
        """Check that the peer is still there, where that can be done. Never blocks."""

    @abstractmethod
    def _read_link_messages(self) -> None:
        """Process the peer's link messages that wait in the socket."""

    @abstractmethod
    def _on_connected(self) -> None:
        """Handle a new connection."""

    @abstractmethod
    def _on_disconnected(self, connection: int) -> None:
        """Handle the end of a connection.

        Args:
            connection: its file descriptor.
        """

    @abstractmethod
    def _end_side_channels(self) -> None:
        """Release shared memory and Unix sockets; the link is closing."""

    @property
    def connected(self) -> bool:
        """Whether the peer is connected and admitted."""
        return self.state == "connected"

    @property
    def refused(self) -> int:
        """How many connections and greetings this end has refused."""
        return self._refusals.count

    @property
    def last_error(self) -> str:
        """The last refusal, or the last connection attempt that failed; empty for none."""
        return self._refusals.last_error

    @property
    def faults(self) -> LinkFaults:
        """The errors of this link, with the facts of this moment."""
        return LinkFaults(
            self.stage, self.peer, self.endpoint, self.party.epoch, self.sequence, self.state, self._connection_detail()
        )

    def close(self, linger_s: float = LINGER_S) -> None:
        """Close the link. Accepted messages are sent for up to `linger_s` seconds. Closing twice is allowed.

        Does nothing in a forked child: the link belongs to its parent.
        """
        self._turn.close(linger_s)

    def disown(self) -> None:
        """Refuse all use from now on: this process is a fork of the one that opened the link."""
        self._turn.disown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connection_detail(self) -> str:
        """The state of the connection, as a clause for a timeout's message."""
        if self.connected:
            return "it is connected"
        return f"it is not connected ({self.last_error})" if self.last_error else "it is not connected"

    def _protect(self, address: str) -> bool:
        return protect(
            self._socket,
            address,
            bind=self._binds,
            security=self.options.security,
            on_refused=self._on_connection_refused,
        )

    def _on_socket_event(self, event: int, value: int) -> None:
        """Handle an event of the socket's monitor; called from the monitor's thread."""
        failure = self._handshakes.take(event, value)
        if failure is not None:
            self._on_handshake_failed(failure)
        if event == zmq.EVENT_DISCONNECTED:
            self._turn.post(lambda: self._on_disconnected(value))
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._turn.post(self._on_connected)
        if not self._binds:
            self._monitor.reconnect_later(failure is not None)

    def _on_handshake_failed(self, failure: Failure) -> None:
        """Report a connection that ended before its handshake was complete."""
        if not self._binds:
            self._refusals.failed(self.endpoint, connect_failure(failure, self.peer, keyed=self._keyed))
        elif reason := refusal_reason(failure, keyed=self._keyed):
            self._on_connection_refused(failure.address, reason)

    def _on_connection_refused(self, address: str, reason: str) -> None:
        """Report a connection that was refused; the address is empty where it is not known."""
        who = f"a connection from {address}" if address else "a connection"
        self._record_refusal(f"{who} was refused: {reason}")

    def _record_refusal(self, text: str) -> None:
        """Count and log a connection or a greeting that this end has refused."""
        self._refusals.refused(self.endpoint, text)

    def _try_read(self) -> bool:
        """Process the peer's link messages; False if another thread has the socket, which will process them."""
        return self._turn.try_run()

    def _reconnect(self) -> None:
        """Connect again: after some failures of a handshake libzmq gives up for good. Never blocks."""
        self._turn.post(self._connect_again)

    def _connect_again(self) -> None:
        with suppress(zmq.ZMQError):  # there is no connection to end
            self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)

    def _encoded(self, message: LinkMessage, session: int = 0) -> Buffer:
        """The one frame of a link message."""
        return encode(
            Kind.LINK, encode_link_message(message), (),
            source=self.stage, epoch=self.party.epoch, sequence=0, session=session,
        )[0]  # fmt: skip

    def _readable(self) -> bool:
        """Whether a message waits in the socket. Asking makes libzmq process its pending events."""
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def _dispose(self) -> None:
        """Close the socket; called by the turn. Not from the monitor's thread: closing waits for its end."""
        if self._turn.closed or self._monitor.is_current_thread:
            return
        self._turn.closed = True
        OPEN_LINKS.discard(self)
        self._end_side_channels()
        self._monitor.stop(self._socket)
        self._socket.close(linger=int(self._turn.linger_s * 1000))
        self._context.term()  # returns when everything is sent or the linger has passed
        self._waiter.close()
