# SPDX-License-Identifier: Apache-2.0
"""The gate of a ZeroMQ context: it answers libzmq's question whether a key may enter (ZAP, RFC 27).

The invariant: a connection is admitted to a socket only with CURVE and only with the one key that the socket's domain
awaits, and what it sends is then marked with that peer's name (`User-Id`). Everything else is refused, also what cannot
be understood. (pyzmq's own authenticator admits a connection without any mechanism, and knows keys but not whose.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils import z85

from zpptool.wire.security.key_files import LinkKeys
from zpptool.wire.sockets import Context, Socket

ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_REQUEST_FRAMES = 6
_KEY_BYTES = 32


class _Door(NamedTuple):
    keys: LinkKeys
    refused: Callable[[str, str], None]


class Gate:
    """Answers for all sockets of one context, in a thread of its own, until the context ends.

    Use `Gate.of`: libzmq knows one gate a context.
    """

    def __init__(self, context: Context) -> None:
        self._doors: dict[bytes, _Door] = {}
        asked = context.socket(zmq.REP)
        asked.setsockopt(zmq.LINGER, 0)
        asked.bind(ADDRESS)
        threading.Thread(target=_answer, args=(asked, self._doors), name="zpptool-gate", daemon=True).start()

    @staticmethod
    def of(context: Context) -> Gate:
        """The gate of a context, made when it is first asked for."""
        with _lock:
            gate = _gates.get(context)
            if gate is None:
                gate = _gates[context] = Gate(context)
            return gate

    def admit(self, domain: str, keys: LinkKeys, refused: Callable[[str, str], None]) -> None:
        """From now on admit the peer of `keys` to the sockets of a domain, and nobody else.

        Args:
            refused: is told the address of whoever is not admitted, and why; from the gate's thread.
        """
        self._doors[domain.encode()] = _Door(keys, refused)


_gates: weakref.WeakKeyDictionary[Context, Gate] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _answer(asked: Socket, doors: dict[bytes, _Door]) -> None:
    with asked:
        while True:
            try:
                request = asked.recv_multipart()
                asked.send_multipart(_reply(request, doors))
            except zmq.ZMQError:  # the context has ended
                return


def _reply(request: list[bytes], doors: dict[bytes, _Door]) -> list[bytes]:
    """The answer to one question: version, request, status, reason, user, metadata."""
    number = request[1] if len(request) > 1 else b""
    name, why = _judge(request, doors)
    if why:
        return [_VERSION, number, b"400", b"not admitted", b"", b""]
    return [_VERSION, number, b"200", b"OK", name.encode(), b""]


def _judge(request: list[bytes], doors: dict[bytes, _Door]) -> tuple[str, str]:
    """Who asks, and why he may not enter; no reason, he may."""
    if len(request) < _REQUEST_FRAMES or request[0] != _VERSION:
        return "", "a question that cannot be understood"
    _, _, domain, address, _, mechanism, *credentials = request
    door = doors.get(domain)
    if door is None:
        return "", "nobody is awaited there"
    if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != _KEY_BYTES:
        why = "it has no key"
    else:
        key = z85.encode(credentials[0])
        if key == door.keys.peer_public:
            return door.keys.peer, ""
        whose = door.keys.known.get(key)
        why = f"it has the key of {whose}" if whose else f"its key, {key.decode()}, is not that of {door.keys.peer}"
    door.refused(address.decode(errors="replace"), why)
    return "", why
