# SPDX-License-Identifier: Apache-2.0
"""Who may ask: with API keys, everything but the probes and the page's empty frame wants one of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence

from zpptool.serve.http_errors import no_key
from zpptool.serve.http_exchange import Answer, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/health", "/livez", "/readyz"})
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class KeyGuard:
    """ASGI middleware that lets nobody through without a key.

    Args:
        app: what is guarded.
        keys: any of these will do.
    """

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that has a key, and refuse any other."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admits(scope):
            await Answer(send).refuse(no_key())
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        """Compared in constant time, with every key, by digests: neither where a guess differs nor its length shows."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        same = [hmac.compare_digest(digest, own) for own in self._digests]
        return scheme.lower() == b"bearer" and any(same)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
