# SPDX-License-Identifier: Apache-2.0
"""Admission of requests to an ASGI application, so that it can be drained: no new ones, and those in progress end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METRICS = "/metrics"
RETRY_AFTER_S = 5


class Admission:
    """An application that can stop admitting requests. Not thread-safe: everything happens on the server's event loop.

    After `close` every request is answered with 503, `/health` too, so that load balancers turn to another server.
    `/metrics` remains, for the last scrape.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_progress: dict[asyncio.Task[Any], _Answer] = {}
        self._on_idle: Callable[[], None] | None = None

    def close(self, on_idle: Callable[[], None]) -> None:
        """Admit no more requests.

        Args:
            on_idle: called once, when no request is in progress; from here if none is.
        """
        if self._on_idle is None:
            self._on_idle = on_idle
            self._report_if_idle()

    def cut(self, on_idle: Callable[[], None]) -> None:
        """Admit no more requests, and end those in progress with an error; `on_idle` as for `close`."""
        for task in self._in_progress:
            task.cancel()
        self.close(on_idle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI defines it."""
        if scope["type"] != "http" or scope["path"].startswith(METRICS):
            await self._app(scope, receive, send)
        elif self._on_idle is not None:
            await _refusal("this pipeline is stopping and takes no more requests")(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        task, answer = asyncio.current_task(), _Answer(send)
        assert task is not None
        self._in_progress[task] = answer
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if self._on_idle is None:
                raise
            task.uncancel()
            await answer.end_with_error(scope, receive)
        finally:
            del self._in_progress[task]
            self._report_if_idle()

    def _report_if_idle(self) -> None:
        if self._on_idle is not None and not self._in_progress:
            self._on_idle()


class _Answer:
    """A response, of which is known whether it has begun, and whether it is a stream of events.

    Args:
        send: of the server.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._content_type: bytes | None = None

    async def send(self, message: Message) -> None:
        """Pass a message of the application on to the server."""
        if message["type"] == "http.response.start":
            self._content_type = dict(message.get("headers", ())).get(b"content-type", b"")
        await self._send(message)

    async def end_with_error(self, scope: Scope, receive: Receive) -> None:
        """End it with an error. A response that has begun and is no stream of events is broken off by the server."""
        message = "this pipeline has stopped before the answer was complete"
        if self._content_type is None:
            await _refusal(message)(scope, receive, self._send)
        elif self._content_type.startswith(b"text/event-stream"):
            event = b"data: " + json.dumps(_error(message)).encode() + b"\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _refusal(message: str) -> JSONResponse:
    return JSONResponse(_error(message), 503, {"retry-after": str(RETRY_AFTER_S), "connection": "close"})


def _error(message: str) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "pipeline_stopping"}}
