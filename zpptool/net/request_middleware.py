# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware that gives each request its id and its span.

The id is the `X-Request-Id` that came with the request, or a new one; it is in the
response, in what is forwarded, in log records and in spans. The `traceparent` header (W3C) makes spans part of the
client's trace.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zpptool.net.request_context import CURRENT, RequestContext
from zpptool.net.tracing import Tracer

REQUEST_ID = "x-request-id"
TRACE_PARENT = "traceparent"
QUIET = frozenset({"/health", "/livez", "/readyz", "/metrics", "/pipeline/status", "/ping", "/load"})
"""Routes that are read all the time: they have ids, but no spans and no log records."""
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_log = logging.getLogger(__name__)


class RequestContexts:
    """Middleware that gives each request its context.

    Args:
        app: the application behind it.
        tracer: records the spans.
        place: what this server is called in spans and log records.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer, place: str) -> None:
        self._app, self._tracer, self._place = app, tracer, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. The response keeps an id that the application has given it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault(REQUEST_ID, request_id)
            await send(message)

        if scope["path"] in QUIET:
            await self._app(_with_headers(scope, request_id, ""), receive, send_with_id)
            return
        parent = headers.get(TRACE_PARENT, "")
        name = f"{self._place} {scope['method']} {scope['path']}"
        about = {"zpptool.request_id": request_id, "http.request.method": scope["method"], "url.path": scope["path"]}
        began = time.monotonic()
        with self._tracer.span(name, parent if _TRACE_PARENT.fullmatch(parent) else "", **about) as span:
            token = CURRENT.set(RequestContext(request_id, span))
            try:
                await self._app(_with_headers(scope, request_id, span.parent), receive, send_with_id)
            finally:
                CURRENT.reset(token)
                _log.debug(
                    "%s: request %s: status %d after %.3f s", name, request_id, status, time.monotonic() - began,
                    extra={"request_id": request_id},
                )  # fmt: skip


def _with_headers(scope: Scope, request_id: str, parent: str) -> Scope:
    """Return the scope with the id, and the parent for spans of servers behind this one; empty to keep the client's."""
    replaced = {REQUEST_ID.encode(): request_id.encode("ascii")}
    if parent:
        replaced[TRACE_PARENT.encode()] = parent.encode("ascii")
    kept = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    return {**scope, "headers": [*kept, *replaced.items()]}
