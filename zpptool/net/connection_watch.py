# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware that informs a request's connection of what has arrived and what was sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from zpptool.net.guarded_connection import CONNECTION, GuardedConnection

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ConnectionWatch:
    """The outermost application of a server with guarded connections.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in the server's start and end."""
        connection = scope.get("state", {}).get(CONNECTION)
        if scope["type"] != "http" or not isinstance(connection, GuardedConnection):
            await self._app(scope, receive, send)
            return
        complete = not has_body(scope)
        connection.headers_received(has_body=not complete)

        async def watched_receive() -> Message:
            nonlocal complete
            message = await receive()
            if not complete and message["type"] == "http.request" and not message.get("more_body", False):
                complete = True
                connection.body_received()
            return message

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                connection.response_begun()
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                connection.response_ended(body_is_complete=complete)

        await self._app(scope, watched_receive, watched_send)


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body.

    Args:
        scope: of the ASGI call.
    """
    fields = dict(scope["headers"])
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip(b"0 ") != b""
