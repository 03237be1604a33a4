# SPDX-License-Identifier: Apache-2.0
"""The ZAP server of a link (RFC 27): it answers libzmq's question whether a key is admitted.

The invariant: a connection is admitted only with CURVE and only with the one key that the link awaits, and the messages
that it sends are marked with that peer's name (`User-Id`). Everything else is refused, malformed requests included.
(pyzmq's own authenticator admits a connection without any mechanism, and knows keys but not whose they are.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq
from zmq.utils import z85

from zpptool.wire.security.key_files import LinkKeys
from zpptool.wire.sockets import ZAP_DOMAIN, Context

ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_REQUEST_FRAMES = 6
_KEY_BYTES = 32


def serve_zap(context: Context, reply: Callable[[list[bytes]], list[bytes]]) -> None:
    """Answer libzmq's questions of one context, in a thread of its own, until the context ends.

    Args:
        context: of the sockets that are asked about.
        reply: makes the answer to one request.
    """
    requests = context.socket(zmq.REP)
    requests.setsockopt(zmq.LINGER, 0)
    requests.bind(ADDRESS)

    def serve() -> None:
        with requests:
            while True:
                try:
                    requests.send_multipart(reply(requests.recv_multipart()))
                except zmq.ZMQError:  # the context has ended
                    return

    threading.Thread(target=serve, name="zpptool-zap", daemon=True).start()


def curve_key(request: list[bytes]) -> bytes | None:
    """The key, in Z85, with which a connection to a socket of ours has completed the CURVE handshake; None for no key.

    Args:
        request: libzmq's question about the connection.
    """
    if len(request) < _REQUEST_FRAMES or request[0] != _VERSION or request[2] != ZAP_DOMAIN:
        return None
    mechanism, *credentials = request[5:]
    if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != _KEY_BYTES:
        return None
    return z85.encode(credentials[0])


def admission(request: list[bytes], user: bytes | None) -> list[bytes]:
    """The answer to one question: version, request id, status, reason, user, metadata.

    Args:
        request: the question.
        user: marks the messages of the connection (`User-Id`); None to refuse it.
    """
    number = request[1] if len(request) > 1 else b""
    if user is None:
        return [_VERSION, number, b"400", b"not admitted", b"", b""]
    return [_VERSION, number, b"200", b"OK", user, b""]


class ZapServer:
    """Answers for the socket of one link, in a thread of its own, until the link's context ends.

    libzmq allows one ZAP server a context, and each link has its own context.

    Args:
        context: of the link.
        keys: of the link; only their peer is admitted.
        on_refused: called with the address of a connection that is not admitted and the reason, from this thread.
    """

    def __init__(self, context: Context, keys: LinkKeys, on_refused: Callable[[str, str], None]) -> None:
        self._keys = keys
        self._on_refused = on_refused
        serve_zap(context, self.reply)

    def reply(self, request: list[bytes]) -> list[bytes]:
        """The answer to one request: version, request id, status, reason, user, metadata."""
        return admission(request, None if self._refusal(request) else self._keys.peer.encode())

    def _refusal(self, request: list[bytes]) -> str:
        """Why a connection is not admitted; empty when it is."""
        if len(request) < _REQUEST_FRAMES or request[0] != _VERSION:
            return "the request is malformed"
        _, _, domain, address, *_ = request
        if domain != ZAP_DOMAIN:
            return "the domain is not this link's"
        key = curve_key(request)
        if key is None:
            reason = "it has no key"
        else:
            if key == self._keys.peer_public:
                return ""
            owner = self._keys.known.get(key)
            peer = self._keys.peer
            reason = f"it has the key of {owner}" if owner else f"its key, {key.decode()}, is not that of {peer}"
        self._on_refused(address.decode(errors="replace"), reason)
        return reason
