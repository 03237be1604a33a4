# SPDX-License-Identifier: Apache-2.0
"""API keys: with keys configured, every path except the probes and the empty page requires one of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence

from zpptool.serve.http_errors import invalid_api_key
from zpptool.serve.http_exchange import ClientResponse, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/health", "/livez", "/readyz"})
"""Paths that need no key."""
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class KeyGuard:
    """ASGI middleware that answers requests without a valid key with 401.

    Args:
        app: the application behind it.
        keys: the valid keys.
    """

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request that has a valid key, or needs none; refuse any other."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admits(scope):
            await ClientResponse(send).refuse(invalid_api_key())
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        """Whether the request's key is valid. Digests are compared in constant time, with every key, so that timing
        reveals neither the first wrong byte of a guess nor a key's length."""
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
