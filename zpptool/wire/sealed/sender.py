# SPDX-License-Identifier: Apache-2.0
"""The sender's end of a sealed channel: pieces of frames are sealed and sent by one thread for each lane."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from zpptool.wire.sealed.lane_socket import tune
from zpptool.wire.sealed.listener import LaneListener
from zpptool.wire.sealed.offer import LANES, SealedOffer, encode_offer
from zpptool.wire.sealed.record import ACCEPTED_TICKET, PIECE_BYTES, Piece, Sealer
from zpptool.wire.sealed.session_keys import lane_key, lane_proof, new_secret
from zpptool.wire.sealed.transfer import Transfer


class _Job(NamedTuple):
    piece: Piece
    transfer: Transfer


class SealedSender:
    """Sends the frames of one session. Opened when a receiver that offers the channel is welcomed.

    Args:
        host: the address to listen at.
        on_lost: called from another thread when a lane has failed after all were connected; frames that were put are
            then lost.

    Attributes:
        failed: whether a lane has failed.
        offer: what the receiver needs, for the welcome. It holds the session's secret, so it is sent under CURVE only.

    Raises:
        OSError: no port can be bound.
    """

    def __init__(self, host: str, on_lost: Callable[[], None]) -> None:
        secret = new_secret()
        self._on_lost = on_lost
        self._keys = [lane_key(secret, lane) for lane in range(LANES)]
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._tickets = itertools.count(ACCEPTED_TICKET + 1)
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._closed = False
        self.failed = False
        proofs = {lane: lane_proof(secret, lane) for lane in range(LANES)}
        self._listener = LaneListener(host, proofs, self._begin_lane)
        self.offer = encode_offer(SealedOffer(self._listener.port, secret))
        threading.Thread(target=self._listener.run, name="zpp-sealed-accept", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether all lanes are connected, and none has failed."""
        return len(self._connections) == LANES and not self._closed

    def put(self, frame: memoryview) -> tuple[int, Transfer]:
        """Have a frame sent. Its memory is read until the transfer is done. Never blocks.

        Args:
            frame: any contiguous memory, at least one byte.

        Returns:
            the frame's ticket, and its transfer.
        """
        flat = frame.cast("B")
        ticket, transfer = next(self._tickets), Transfer(flat)
        for offset in range(0, flat.nbytes, PIECE_BYTES):
            self._jobs.put(_Job(Piece(ticket, offset, min(PIECE_BYTES, flat.nbytes - offset)), transfer))
        if self._closed:
            self._drop_jobs()
        return ticket, transfer

    def close(self) -> None:
        """Send nothing more. Transfers end, and the threads with them."""
        self._closed = True
        self._listener.close()
        for _ in range(LANES):
            self._jobs.put(None)
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            with suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)
        self._drop_jobs()

    def _begin_lane(self, lane: int, connection: socket.socket) -> None:
        tune(connection)
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connections[lane] = connection
        work = threading.Thread(target=self._run_lane, args=(lane, connection), name=f"zpp-sealed-{lane}", daemon=True)
        work.start()

    def _run_lane(self, lane: int, connection: socket.socket) -> None:
        sealer = Sealer(self._keys[lane])
        with connection:
            with suppress(OSError):  # a later record will fail as well
                connection.sendall(sealer.seal(Piece(ACCEPTED_TICKET, 0, 1), memoryview(b"\0")))
            while (job := self._jobs.get()) is not None:
                piece, view = job.piece, job.transfer.view
                if view is None:
                    continue
                try:
                    connection.sendall(sealer.seal(piece, view[piece.offset : piece.offset + piece.nbytes]))
                except OSError:
                    job.transfer.end()
                    self._fail()
                    return
                del view
                job.transfer.account(piece.nbytes)

    def _fail(self) -> None:
        if not self._closed:
            self.failed = True
            self.close()
            self._on_lost()

    def _drop_jobs(self) -> None:
        """End the transfers that no lane has taken."""
        stops = 0
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    stops += 1
                else:
                    job.transfer.end()
        for _ in range(stops):
            self._jobs.put(None)
