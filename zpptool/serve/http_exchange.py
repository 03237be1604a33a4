# SPDX-License-Identifier: Apache-2.0
"""The client's side of one proxied request: its body, read whole and bounded, and its answer, begun at most once.

The body is held, so that the request can be asked again elsewhere; the answer is passed on piece by piece, and nothing
of it is sent before there is a first piece.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from zpptool.serve.http_errors import Refusal, too_large

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
"""What is between two neighbours only (RFC 9110, 7.6.1)."""
ASKED_AGAIN = (
    "completions", "responses", "embeddings", "messages", "tokenize", "detokenize", "score", "rerank", "pooling",
    "classify", "transcriptions", "translations", "invocations", "generate", "render", "count_tokens",
)  # fmt: skip
"""The last word of POST routes that change nothing, so that they may be asked twice."""
EVENT_STREAM = b"text/event-stream"


class ClientGone(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True)
class Asked:
    """A request, whole.

    Attributes:
        method: the HTTP method.
        target: path and query as they were sent.
        headers: those that are passed on.
        body: the bytes.
    """

    method: str
    target: bytes
    headers: Headers
    body: bytes

    @property
    def may_be_repeated(self) -> bool:
        """Whether it may be asked again when it is not known what became of it."""
        last = self.target.split(b"?")[0].rstrip(b"/").rsplit(b"/", 1)[-1].decode("latin-1")
        return self.method in ("GET", "HEAD", "OPTIONS") or (self.method == "POST" and last in ASKED_AGAIN)


async def read_request(scope: Scope, receive: Receive, limit: int, *, keep_key: bool) -> Asked:
    """The client's request.

    Args:
        limit: the most bytes of a body.
        keep_key: whether `Authorization` is passed on; not, where it was for this server.

    Raises:
        Refusal: (413) the body is larger.
        ClientGone: the client went away in the middle of it.
    """
    headers: Headers = scope["headers"]
    said = next((value for name, value in headers if name == b"content-length"), b"0")
    if said.isdigit() and int(said) > limit:
        raise too_large(limit)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        pieces.append(piece)
        if not message.get("more_body", False):
            break
    query = scope["query_string"]
    dropped = HOP_BY_HOP | {b"host", b"content-length", b"expect"} | (set() if keep_key else {b"authorization"})
    return Asked(
        method=scope["method"],
        target=scope["raw_path"] + (b"?" + query if query else b""),
        headers=[(name, value) for name, value in headers if name not in dropped],
        body=b"".join(pieces),
    )


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def tells_of_a_fault(content_type: bytes, piece: bytes) -> bool:
    """Whether the first piece of a stream is an event that holds an error and nothing else."""
    if not content_type.startswith(EVENT_STREAM) or not piece.startswith(b"data: {"):
        return False
    try:
        event = json.loads(piece.partition(b"\n\n")[0].removeprefix(b"data: "))
    except ValueError:
        return False
    return isinstance(event, dict) and "error" in event and "choices" not in event


class Answer:
    """The answer to a client.

    Attributes:
        status: once begun; 0 before.
        ended: whether it is whole.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._events = False
        self._tail = b""
        self.status = 0
        self.ended = False

    @property
    def begun(self) -> bool:
        """Whether anything has been sent."""
        return self.status != 0

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        self.status = status
        self._events = any(
            name.lower() == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers
        )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def add(self, piece: bytes) -> None:
        """Send a piece of the body."""
        self._tail = (self._tail + piece)[-2:]
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """There is no more."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        """Say why there is no answer, or no more of it. A body that has begun and is no stream of events, or is in the
        middle of one, cannot hold that: it is left unfinished, and the server then cuts the connection."""
        if not self.begun:
            await self.begin(refusal.status, refusal.headers())
            await self.add(refusal.body())
            await self.end()
        elif self._events and self._tail in (b"", b"\n\n"):
            await self.add(refusal.event())
            await self.end()


def passed_on(headers: Headers) -> Headers:
    """An upstream's headers as the client gets them."""
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | {b"date", b"server"}]
