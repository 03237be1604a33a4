# SPDX-License-Identifier: Apache-2.0
"""A gateway on a real socket, and upstream servers whose responses a test determines byte for byte."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zpptool.net.connection_limits import ConnectionLimits
from zpptool.net.http_server import HttpServer
from zpptool.ring.status import RingStatus
from zpptool.serve.extension import FrontExtension
from zpptool.serve.front_access import FrontAccess
from zpptool.serve.gateway import Gateway, GatewayParts
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.named_keys import ApiKey
from zpptool.serve.pool import Pool
from zpptool.serve.proxy import ProxyLimits, open_client

Behave = Callable[["ReceivedRequest", asyncio.StreamWriter], Awaitable[None]]
OK_JSON = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"a": "b"}\n'
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ONE_EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'


class ReceivedRequest:
    """A request as its bytes arrived.

    Attributes:
        line: the request line.
        headers: the header lines.
        body: all of it.
        reader: of the connection; it ends when the client disconnects.
    """

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader) -> None:
        self.line, *self.headers = head.decode("latin-1").rstrip().split("\r\n")
        self.body = body
        self.reader = reader

    @property
    def path(self) -> str:
        """The path of the request line, with its query."""
        return self.line.split(" ")[1]


def chunk(content: bytes) -> bytes:
    """A chunk of a body with chunked transfer encoding; an empty one ends the body."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


async def answer_ok(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Answer with a JSON object."""
    writer.write(OK_JSON)


def answering(head: str, body: bytes = b"") -> Behave:
    """Behave as a server that gives this answer.

    Args:
        head: what follows `HTTP/1.1` in its head: the status, and header lines.
        body: of the answer.
    """

    async def behave(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    return behave


class ToyServer:
    """A server that answers requests with a function of the test.

    Attributes:
        received: every request except those for `/health`.
        behave: answers one request.
        healthy: whether `/health` answers 200.
        url: its base URL.
    """

    def __init__(self, behave: Behave = answer_ok) -> None:
        self.behave = behave
        self.received: list[ReceivedRequest] = []
        self.healthy = True
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server and close its connections."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(5)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._socket)
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                request = ReceivedRequest(head, body, reader)
                if request.path == "/health":
                    status = b"200 OK" if self.healthy else b"503 Service Unavailable"
                    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
                else:
                    self.received.append(request)
                    await self.behave(request, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


class RunningGateway:
    """A gateway and its pool.

    Attributes:
        url: the gateway's base URL.
        pool: its pipelines.
    """

    def __init__(self, server: HttpServer, pool: Pool) -> None:
        self.url, self.pool, self._loop = server.url, pool, server.loop

    def update(self, number: int, state: BackendState) -> None:
        """Set a pipeline's state, and return once the gateway uses it."""
        self.call_on_loop(lambda: self.pool.update(number, state))

    def call_on_loop(self, function: Callable[[], Any]) -> None:
        """Call a function on the event loop's thread, and return when it has returned."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def until(self, condition: Callable[[], object], within_s: float = 20.0) -> None:
        """Return once the condition is true; fail after `within_s` seconds."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true in time"
            time.sleep(0.01)


@contextmanager
def gateway_of(
    upstreams: Sequence[ToyServer],
    *,
    ready: bool = True,
    deadline_s: float = 30.0,
    body_bytes: int = 1 << 20,
    request_s: float | None = None,
    keys: Sequence[str] = (),
    tls: tuple[Path, Path] | None = None,
    described: Sequence[dict[str, Any]] | None = None,
    rings: Mapping[str, RingStatus] | None = None,
    access: FrontAccess | None = None,
    connections: ConnectionLimits | None = None,
    buffered_bytes: int = 1 << 30,
    extension: FrontExtension | None = None,
    by_prefix: bool = False,
) -> Iterator[RunningGateway]:
    """A gateway before these servers.

    Args:
        upstreams: the servers.
        ready: whether their pipelines are ready from the start.
        deadline_s: how long a request waits for a ready pipeline.
        body_bytes: the limit of a request's body.
        request_s: the request timeout; None for none.
        keys: the valid API keys; empty to require none.
        tls: certificate and key.
        described: each pipeline's description for the status.
        rings: the rings' statuses by pipeline name.
        access: further access rules; its keys are those of `keys`.
        connections: the limits of connections; None for the defaults.
        buffered_bytes: the limit of the bodies of all requests in progress.
        extension: what the gateway has beside.
        by_prefix: whether prompts that begin alike go to one pipeline.
    """
    with HttpServer("127.0.0.1", 0, *(tls or ()), limits=connections or ConnectionLimits()) as server:
        pool = Pool([f"pipeline {number}" for number in range(len(upstreams))], deadline_s)

        def describer(number: int) -> Callable[[], Awaitable[dict[str, Any]]]:
            async def describe() -> dict[str, Any]:
                return described[number] if described else {}

            return describe

        parts = GatewayParts(
            pool=pool,
            describe=[describer(number) for number in range(len(upstreams))],
            watch=[],
            client=open_client(),
            limits=ProxyLimits(
                body_bytes, request_s, keep_key=not keys, buffered_bytes=buffered_bytes, by_prefix=by_prefix
            ),
            access=replace(
                access or FrontAccess(),
                keys=tuple(ApiKey(f"key {number}", key) for number, key in enumerate(keys, 1)),
            ),
            rings=lambda: rings or {},
            extension=extension,
        )
        server.start(lambda: Gateway(parts).app())
        gateway = RunningGateway(server, pool)
        if ready:
            for number, upstream in enumerate(upstreams):
                gateway.update(number, BackendState(upstream.url, ready=True, phase="ready", generation=1))
        yield gateway
