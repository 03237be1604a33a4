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
from zpptool.wire.sockets import ZAP_DOMAIN, Context, Socket

ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_REQUEST_FRAMES = 6
_KEY_BYTES = 32


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
        requests = context.socket(zmq.REP)
        requests.setsockopt(zmq.LINGER, 0)
        requests.bind(ADDRESS)
        threading.Thread(target=self._serve, args=(requests,), name="zpptool-zap", daemon=True).start()

    def reply(self, request: list[bytes]) -> list[bytes]:
        """The answer to one request: version, request id, status, reason, user, metadata."""
        number = request[1] if len(request) > 1 else b""
        reason = self._refusal(request)
        if reason:
            return [_VERSION, number, b"400", b"not admitted", b"", b""]
        return [_VERSION, number, b"200", b"OK", self._keys.peer.encode(), b""]

    def _serve(self, requests: Socket) -> None:
        with requests:
            while True:
                try:
                    requests.send_multipart(self.reply(requests.recv_multipart()))
                except zmq.ZMQError:  # the context has ended
                    return

    def _refusal(self, request: list[bytes]) -> str:
        """Why a connection is not admitted; empty when it is."""
        if len(request) < _REQUEST_FRAMES or request[0] != _VERSION:
            return "the request is malformed"
        _, _, domain, address, _, mechanism, *credentials = request
        if domain != ZAP_DOMAIN:
            return "the domain is not this link's"
        if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != _KEY_BYTES:
            reason = "it has no key"
        else:
            key = z85.encode(credentials[0])
            if key == self._keys.peer_public:
                return ""
            owner = self._keys.known.get(key)
            peer = self._keys.peer
            reason = f"it has the key of {owner}" if owner else f"its key, {key.decode()}, is not that of {peer}"
        self._on_refused(address.decode(errors="replace"), reason)
        return reason
