# SPDX-License-Identifier: Apache-2.0
"""API keys: with keys configured, every request except those that read a probe or the empty page requires one."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from zpptool.serve.http_errors import invalid_api_key
from zpptool.serve.named_keys import ApiKey
from zpptool.serve.probe_paths import READING, is_probe

KEY_NAME = "zpptool.api_key"
"""Where the scope of a request has the name of its key."""
PAGE_PATH = "/"
"""The page holds no data: it asks for a key, and requests what it shows with that key."""
_logger = logging.getLogger(__name__)


class KeyGuard:
    """ASGI middleware that answers requests without a valid key with 401.

    Args:
        app: the application behind it.
        keys: the valid keys. Logs have their names at level debug.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._names = [key.name for key in keys]
        self._digests = [_digest(key.secret.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request that has a valid key, or needs none; refuse any other."""
        if scope["type"] == "http" and not _is_open(scope):
            name = self._valid_key(scope)
            if _logger.isEnabledFor(logging.DEBUG):
                _logger.debug("%s %s %s", scope["method"], scope["path"], _described(name))
            if name is None:
                await invalid_api_key().response()(scope, receive, send)
                return
            scope[KEY_NAME] = name
        await self._app(scope, receive, send)

    def _valid_key(self, scope: Scope) -> str | None:
        """The name of the request's key; None if it is not valid. Digests are compared in constant time, with every
        key, so that timing reveals neither the first wrong byte of a guess nor a key's length."""
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        valid = [name for name, matched in zip(self._names, matches, strict=True) if matched]
        return valid[0] if valid and scheme.lower() == b"bearer" else None


def _described(name: str | None) -> str:
    return f"with the API key {name}" if name else "without a valid API key"


def _is_open(scope: Scope) -> bool:
    return is_probe(scope) or (scope["path"] == PAGE_PATH and scope["method"] in READING)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
