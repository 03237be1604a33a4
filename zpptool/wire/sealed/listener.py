# SPDX-License-Identifier: Apache-2.0
"""Where the receiver's lanes connect: a listening socket that exists only until they have.

Anybody may connect to it, so a connection is bounded in every way before it is known whose it is: it has to send the
proof of a lane, 33 bytes, within `PROOF_DEADLINE_S`; at most `MAX_UNKNOWN` connections are held meanwhile, without a
thread or a buffer of their own; others are closed at once. The socket is closed when all lanes are connected, when
`OPEN_S` have passed, or with the session.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from zpptool.wire.sealed.session_keys import PROOF_BYTES

OPEN_S = 15.0
"""How long after the welcome lanes are accepted."""
PROOF_DEADLINE_S = 3.0
MAX_UNKNOWN = 8
GREETING_BYTES = 1 + PROOF_BYTES
"""The number of the lane, and its proof."""
_POLL_S = 0.2


@dataclass
class _Unknown:
    """A connection that has not proven yet whose it is."""

    connection: socket.socket
    until: float
    greeting: bytes = b""


class LaneListener:
    """Accepts the lanes of one session. `run` is called by a thread of its own; `close` by any.

    Args:
        host: the address to bind.
        proofs: what the connection of each lane has to send.
        accepted: called with each lane and its connection.

    Attributes:
        port: where it listens.

    Raises:
        OSError: no port can be bound there.
    """

    def __init__(self, host: str, proofs: Mapping[int, bytes], accepted: Callable[[int, socket.socket], None]) -> None:
        self._missing = dict(proofs)
        self._accepted = accepted
        self._closed = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=MAX_UNKNOWN)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Accept no more lanes."""
        self._closed = True

    def run(self) -> None:
        """Accept until every lane is connected, time is up, or `close` is called."""
        end = time.monotonic() + OPEN_S
        unknown: dict[int, _Unknown] = {}
        with self._socket, selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            try:
                while self._missing and not self._closed and time.monotonic() < end:
                    for key, _ in selector.select(_POLL_S):
                        if key.fileobj is self._socket:
                            self._accept(selector, unknown)
                        elif self._read(unknown[key.fd]):
                            selector.unregister(key.fileobj)
                            del unknown[key.fd]
                    for descriptor, late in list(unknown.items()):
                        if late.until < time.monotonic():
                            selector.unregister(late.connection)
                            del unknown[descriptor]
                            late.connection.close()
            finally:
                for late in unknown.values():
                    late.connection.close()

    def _accept(self, selector: selectors.BaseSelector, unknown: dict[int, _Unknown]) -> None:
        with suppress(OSError):
            connection, _ = self._socket.accept()
            if len(unknown) >= MAX_UNKNOWN:
                connection.close()
                return
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            unknown[connection.fileno()] = _Unknown(connection, time.monotonic() + PROOF_DEADLINE_S)

    def _read(self, unknown: _Unknown) -> bool:
        """Read more of a greeting; whether the connection is no longer unknown: it is a lane's, or closed."""
        try:
            received = unknown.connection.recv(GREETING_BYTES - len(unknown.greeting))
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        unknown.greeting += received
        if received and len(unknown.greeting) < GREETING_BYTES:
            return False
        lane, proof = (unknown.greeting[0], unknown.greeting[1:]) if unknown.greeting else (-1, b"")
        if hmac.compare_digest(self._missing.get(lane, b""), proof) and proof:
            del self._missing[lane]
            unknown.connection.setblocking(True)
            self._accepted(lane, unknown.connection)
        else:
            unknown.connection.close()
        return True
