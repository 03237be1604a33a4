# SPDX-License-Identifier: Apache-2.0
"""The client's side of one proxied request: its body, read whole up to a limit, and its response, begun at most once.

The body is kept, so that the request can be repeated at another pipeline. The response is forwarded chunk by chunk,
and nothing of it is sent before the first chunk has arrived.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from zpptool.serve.body_budget import BodyAccount
from zpptool.serve.hop_headers import EVENT_STREAM, Headers, end_to_end, is_event_stream
from zpptool.serve.http_errors import Refusal, body_too_large

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REPEATABLE = (
    "completions", "responses", "embeddings", "messages", "tokenize", "detokenize", "score", "rerank", "pooling",
    "classify", "transcriptions", "translations", "invocations", "generate", "render", "count_tokens",
)  # fmt: skip
"""The last path segment of POST routes that change nothing, so that a request may be repeated."""


class ClientDisconnected(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True)
class ProxiedRequest:
    """A complete request.

    Attributes:
        method: the HTTP method.
        target: path and query.
        headers: those that are forwarded.
        body: all of it.
    """

    method: str
    target: bytes
    headers: Headers
    body: bytes

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent again although a pipeline may already have processed it."""
        last = self.target.split(b"?")[0].rstrip(b"/").rsplit(b"/", 1)[-1].decode("latin-1")
        return self.method in ("GET", "HEAD", "OPTIONS") or (self.method == "POST" and last in REPEATABLE)


async def read_request(
    scope: Scope, receive: Receive, limit: int, account: BodyAccount, *, keep_key: bool
) -> ProxiedRequest:
    """Read the client's whole request.

    Args:
        scope: of the ASGI call.
        receive: of the ASGI call.
        limit: the most bytes that the body may have.
        account: takes the body's bytes from the budget of all bodies.
        keep_key: whether `Authorization` is forwarded; it is not where this server has API keys of its own.

    Raises:
        Refusal: (413) the body is larger than the limit; (503) all bodies together are larger than their budget.
        ClientDisconnected: the client closed its connection before the body was complete.
    """
    headers: Headers = scope["headers"]
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limit:
        raise body_too_large(limit)
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise body_too_large(limit)
        account.add(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            break
    query = scope["query_string"]
    dropped = {b"host", b"content-length", b"expect"} | (set() if keep_key else {b"authorization"})
    return ProxiedRequest(
        method=scope["method"],
        target=scope["raw_path"] + (b"?" + query if query else b""),
        headers=end_to_end(headers, dropped),
        body=b"".join(chunks),
    )


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def is_error_event(content_type: bytes, chunk: bytes) -> bool:
    """Whether the first chunk of a response is a server-sent event that holds an error and no choices."""
    if not content_type.startswith(EVENT_STREAM) or not chunk.startswith(b"data: {"):
        return False
    try:
        event = json.loads(chunk.partition(b"\n\n")[0].removeprefix(b"data: "))
    except ValueError:
        return False
    return isinstance(event, dict) and "error" in event and "choices" not in event


class ClientResponse:
    """The response to one client.

    Attributes:
        status: the HTTP status once the response has begun; 0 before.
        ended: whether it is complete.

    Args:
        send: of the ASGI call.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._events = False
        self._tail = b""
        self.status = 0
        self.ended = False

    @property
    def begun(self) -> bool:
        """Whether anything was sent to the client."""
        return self.status != 0

    async def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.status = status
        self._events = is_event_stream(headers)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def add(self, chunk: bytes) -> None:
        """Send a chunk of the body."""
        self._tail = (self._tail + chunk)[-2:]
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Complete the response."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        """Send the error: as the response, or as an event of a stream that has begun. A body that is no event stream,
        or ends within an event, cannot carry it: it is left incomplete, and the server closes the connection."""
        if not self.begun:
            await self.begin(refusal.status, refusal.headers())
            await self.add(refusal.body())
            await self.end()
        elif self._events and self._tail in (b"", b"\n\n"):
            await self.add(refusal.event())
            await self.end()
