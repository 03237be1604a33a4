# SPDX-License-Identifier: Apache-2.0
"""The receiver's end of a sealed channel: one thread for each lane opens pieces straight into their frames' memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from zpptool.wire.link_errors import WireError
from zpptool.wire.sealed.lane_socket import tune
from zpptool.wire.sealed.listener import OPEN_S
from zpptool.wire.sealed.offer import LANES, decode_offer
from zpptool.wire.sealed.record import (
    ACCEPTED_TICKET,
    HEADER_BYTES,
    PIECE_BYTES,
    TAG_BYTES,
    Opener,
    Piece,
    decode_header,
)
from zpptool.wire.sealed.session_keys import lane_key, lane_proof
from zpptool.wire.sealed.transfer import Transfer

_CONNECT_TIMEOUT_S = 3.0
_RETRY_S = 0.5
_GRACE_S = 1.0


class SealedReceiver:
    """Receives the frames of one session.

    While the frame of its next piece is not expected yet, because the announcement is still on its way, a lane reads
    nothing more.

    Args:
        offer: of the sender's welcome.
        host: where the sender listens.
        on_progress: called from another thread when a frame has arrived whole, or the channel has failed.
        on_unreachable: called from another thread, with the reason, when the lanes cannot be connected; the sender then
            goes on without the channel.

    Attributes:
        fault: why the channel has failed; None while it has not.

    Raises:
        WireError: the offer is malformed.
    """

    def __init__(
        self, offer: str, host: str, on_progress: Callable[[], None], on_unreachable: Callable[[str], None]
    ) -> None:
        decoded = decode_offer(offer)
        self._address = (host, decoded.port)
        self._on_progress = on_progress
        self._on_unreachable = on_unreachable
        self._expected = threading.Condition()
        self._transfers: dict[int, Transfer] = {}
        self._connections: list[socket.socket] = []
        self._closed = False
        self._connects_until = time.monotonic() + OPEN_S - _CONNECT_TIMEOUT_S
        self.fault: WireError | None = None
        for lane in range(LANES):
            keys = lane_proof(decoded.secret, lane), lane_key(decoded.secret, lane)
            threading.Thread(target=self._run_lane, args=(lane, *keys), name=f"zpp-sealed-{lane}", daemon=True).start()

    def expect(self, ticket: int, view: memoryview) -> Transfer:
        """Have the frame of a ticket received into this memory.

        Raises:
            WireError: the ticket is expected already.
        """
        transfer = Transfer(view)
        with self._expected:
            if ticket in self._transfers:
                raise WireError(f"sealed frame {ticket} was announced twice.")
            self._transfers[ticket] = transfer
            self._expected.notify_all()
        return transfer

    def close(self) -> None:
        """Receive nothing more. What is being opened at this moment still goes into the memory that was expected."""
        with self._expected:
            self._closed = True
            for transfer in self._transfers.values():
                transfer.end()
            self._transfers.clear()
            self._expected.notify_all()
            connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)

    def _run_lane(self, lane: int, proof: bytes, key: bytes) -> None:
        opener = Opener(key)
        while (connection := self._connect()) is not None:
            with connection:
                try:
                    connection.settimeout(None)
                    tune(connection)
                    connection.sendall(bytes([lane]) + proof)
                    self._receive(connection, opener)
                    return
                except (OSError, EOFError) as cause:
                    if opener.number:
                        self._fail(WireError(f"lane {lane} of the sealed channel has ended ({cause})."))
                        return
                    time.sleep(_RETRY_S)  # it was not accepted: too many strangers were connected
                except WireError as error:
                    self._fail(error)
                    return

    def _connect(self) -> socket.socket | None:
        """A connection for a lane; None if there is none."""
        reason = "every connection is closed at once"
        while time.monotonic() < self._connects_until and not self._closed:
            try:
                connection = socket.create_connection(self._address, _CONNECT_TIMEOUT_S)
            except OSError as error:
                reason = str(error)
                time.sleep(_RETRY_S)
                continue
            with self._expected:
                if not self._closed:
                    self._connections.append(connection)
                    return connection
            connection.close()
        if not self._closed:
            self._on_unreachable(reason)
        return None

    def _receive(self, connection: socket.socket, opener: Opener) -> None:
        header = memoryview(bytearray(HEADER_BYTES))
        sealed = memoryview(bytearray(PIECE_BYTES + TAG_BYTES))
        while True:
            _read(connection, header)
            piece = decode_header(header)
            body = sealed[: piece.nbytes + TAG_BYTES]
            _read(connection, body)
            if piece.ticket == ACCEPTED_TICKET:
                opener.open(header, body, memoryview(bytearray(piece.nbytes)))
                continue
            transfer = self._await(piece)
            if transfer is None or (view := transfer.view) is None:
                return
            opener.open(header, body, view[piece.offset : piece.offset + piece.nbytes])
            del view
            if transfer.account(piece.nbytes):
                with self._expected:
                    self._transfers.pop(piece.ticket, None)
                self._on_progress()

    def _await(self, piece: Piece) -> Transfer | None:
        """The transfer that a piece belongs to, when it is expected; None if the channel was closed first.

        Raises:
            WireError: the piece does not lie in its frame.
        """
        with self._expected:
            while piece.ticket not in self._transfers and not self._closed:
                self._expected.wait()
            transfer = None if self._closed else self._transfers[piece.ticket]
        if transfer is not None and transfer.view is not None and piece.offset + piece.nbytes > transfer.view.nbytes:
            raise WireError(f"a sealed piece beyond the end of frame {piece.ticket}.")
        return transfer

    def _fail(self, fault: WireError) -> None:
        """Report the end of a lane, unless it belongs to the end of the session, which the link learns in a moment."""
        with self._expected:
            if self._expected.wait_for(lambda: self._closed, _GRACE_S):
                return
        self.fault = fault
        self._on_progress()


def _read(connection: socket.socket, into: memoryview) -> None:
    """Fill the memory.

    Raises:
        EOFError: the connection has ended before that.
    """
    done = 0
    while done < into.nbytes:
        received = connection.recv_into(into[done:])
        if not received:
            raise EOFError("the sender has closed it")
        done += received
