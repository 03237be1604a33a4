# SPDX-License-Identifier: Apache-2.0
"""`X-Request-Id` on every response, as vLLM's server sends it with `--enable-request-id-headers`."""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"


class RequestIds:
    """ASGI middleware that adds the header to responses that lack it: the request's own id, or a new one.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the response of a pipeline keeps the id that the engine gave it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID) or uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault(REQUEST_ID, request_id)
            await send(message)

        await self._app(scope, receive, send_with_id)
