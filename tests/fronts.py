# SPDX-License-Identifier: Apache-2.0
"""A front on a real socket, and servers behind it that say byte for byte what a test wants, or break."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zpptool.net.http_server import HttpServer
from zpptool.ring.status import RingStatus
from zpptool.serve.gateway import Front, FrontParts
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pool import Pool
from zpptool.serve.proxy import ProxyLimits, open_client

Behave = Callable[["Heard", asyncio.StreamWriter], Awaitable[None]]
OK_JSON = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"a": "b"}\n'
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ONE_EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'


class Heard:
    """A request as it came over the wire."""

    def __init__(self, head: bytes, body: bytes, gone: asyncio.StreamReader) -> None:
        self.line, *self.headers = head.decode("latin-1").rstrip().split("\r\n")
        self.body = body
        self.reader = gone

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]


def chunk(content: bytes) -> bytes:
    """A piece of a body of unknown length; an empty one ends it."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


async def fine(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    """Answer well."""
    writer.write(OK_JSON)


class ToyServer:
    """A server that hears requests and behaves as it is told.

    Attributes:
        heard: every request but those for its health.
        behave: what it does with one.
        healthy: what /health says.
    """

    def __init__(self, behave: Behave = fine) -> None:
        self.behave = behave
        self.heard: list[Heard] = []
        self.healthy = True
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
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
                heard = Heard(head, body, reader)
                if heard.path == "/health":
                    status = b"200 OK" if self.healthy else b"503 Service Unavailable"
                    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
                else:
                    self.heard.append(heard)
                    await self.behave(heard, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


class RunningFront:
    """A front and its pool.

    Attributes:
        url: where it listens.
    """

    def __init__(self, server: HttpServer, pool: Pool) -> None:
        self.url, self.pool, self._loop = server.url, pool, server.loop

    def update(self, number: int, standing: BackendState) -> None:
        """Tell the front of a pipeline's standing, and return when it knows."""
        self.do(lambda: self.pool.update(number, standing))

    def do(self, what: Callable[[], Any]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(10)

    def until(self, true: Callable[[], object], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline, "it did not come about in time"
            time.sleep(0.01)


@contextmanager
def front_of(
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
) -> Iterator[RunningFront]:
    """A front before these servers; they are ready from the beginning unless told otherwise."""
    with HttpServer("127.0.0.1", 0, *(tls or ())) as server:
        pool = Pool([f"pipeline {number}" for number in range(len(upstreams))], deadline_s)

        def describer(number: int) -> Callable[[], Awaitable[dict[str, Any]]]:
            async def describe() -> dict[str, Any]:
                return described[number] if described else {}

            return describe

        parts = FrontParts(
            pool=pool,
            describe=[describer(number) for number in range(len(upstreams))],
            watch=[],
            client=open_client(),
            limits=ProxyLimits(body_bytes, request_s, keep_key=not keys),
            keys=keys,
            rings=lambda: rings or {},
        )
        server.start(lambda: Front(parts).app())
        front = RunningFront(server, pool)
        if ready:
            for number, upstream in enumerate(upstreams):
                front.update(number, BackendState(upstream.url, ready=True, phase="ready", generation=1))
        yield front
