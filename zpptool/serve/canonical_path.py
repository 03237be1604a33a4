# SPDX-License-Identifier: Apache-2.0
"""One spelling for each path: a slash at the end is dropped, and what is forwarded is the path that was checked."""

from __future__ import annotations

from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send


class CanonicalPath:
    """ASGI middleware that drops slashes at the end of a path, so that `/v1/completions/` is `/v1/completions`.

    A redirect instead would have to name an address of this server, which it cannot know behind a proxy.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request with the canonical path as `path` and `raw_path`."""
        if scope["type"] == "http":
            path = scope["path"].rstrip("/") or "/"
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        await self._app(scope, receive, send)
