# SPDX-License-Identifier: Apache-2.0
"""One request's way through the front: to a pipeline, and its answer back byte for byte, as it comes.

As long as nothing was sent to the client, a pipeline that breaks is no fault of the request's: it is asked again, there
or elsewhere, until the deadline. Afterwards the client is told in the stream. A client that leaves takes its request
with it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import httpx

from zpptool.serve.http_errors import Refusal, broken_off, too_late
from zpptool.serve.http_exchange import (
    Answer,
    Asked,
    ClientGone,
    Receive,
    Scope,
    Send,
    passed_on,
    read_request,
    tells_of_a_fault,
    until_gone,
)
from zpptool.serve.load_balancing import Upstream
from zpptool.serve.metrics import FrontMetrics
from zpptool.serve.pool import Pool

CONNECT_S = 5.0
HEALTH_S = 2.0
KEEPALIVE_S = 2.0
"""Shorter than the 5 s after which uvicorn closes an idle connection, so that none is used as it is being closed."""
MOST_ATTEMPTS = 20
MOST_LOST = 3
"""After a request has seen so many pipelines go, or starts of one, it is taken to be what ends them."""


@dataclass(frozen=True)
class ProxyLimits:
    """What one request may take.

    Attributes:
        body_bytes: the most bytes of its body.
        request_s: how long it may take from its first byte to its answer's last; None for as long as it likes.
        keep_key: whether the client's `Authorization` is for the upstreams.
    """

    body_bytes: int
    request_s: float | None
    keep_key: bool


class Broken(Exception):
    """A pipeline broke under a request. `sent` tells whether the request had reached it."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def open_client() -> httpx.AsyncClient:
    """A client for all pipelines: as many connections as there are requests, and no patience of its own."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEPALIVE_S),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        follow_redirects=False,
    )


class Proxy:
    """The ASGI application that passes requests on.

    Args:
        pool: the pipelines.
        client: asks them.
        limits: what one request may take.
        metrics: counts.
    """

    def __init__(self, pool: Pool, client: httpx.AsyncClient, limits: ProxyLimits, metrics: FrontMetrics) -> None:
        self._pool, self._client, self._limits, self._metrics = pool, client, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        answer = Answer(send)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.request_s):
                asked = await read_request(scope, receive, self._limits.body_bytes, keep_key=self._limits.keep_key)
                await self._while_client_stays(asked, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            await answer.refuse(too_late(self._limits.request_s or 0.0))
        except ClientGone:
            answer.status = answer.status or 499  # nginx's number for it; only the metrics see it
        self._metrics.answered(answer.status, time.monotonic() - began)

    async def _while_client_stays(self, asked: Asked, receive: Receive, answer: Answer) -> None:
        work = asyncio.ensure_future(self._answer(asked, answer))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, asked: Asked, answer: Answer) -> None:
        failures: Counter[tuple[str, int]] = Counter()
        lost_with: set[tuple[str, int]] = set()
        deadline = time.monotonic() + self._pool.deadline_s
        while True:
            upstream = await self._pool.take(failures, deadline)
            generation = upstream.standing.generation
            try:
                with self._pool.answering(upstream):
                    await self._pass_on(upstream, asked, answer)
                return
            except Broken as broken:
                self._pool.suspect(upstream)
                failures[upstream.name, generation] += 1
                told = f"{upstream.name} was lost: {broken}"
                if answer.begun or (broken.sent and not asked.may_be_repeated):
                    raise broken_off(told) from broken
                if broken.sent:
                    lost_with.add((upstream.name, generation))
                if len(lost_with) >= MOST_LOST:
                    raise broken_off(f"lost {len(lost_with)} times with this request; last: {told}") from broken
                if failures.total() >= MOST_ATTEMPTS or time.monotonic() >= deadline:
                    raise broken_off(f"asked {failures.total()} times without an answer; last: {told}") from broken
                self._metrics.retried()

    async def _pass_on(self, upstream: Upstream, asked: Asked, answer: Answer) -> None:
        """Ask one pipeline.

        Raises:
            Broken: it broke; whether anything was sent to the client, `answer` knows.
        """
        url = httpx.URL(upstream.standing.url).copy_with(raw_path=asked.target)
        request = httpx.Request(asked.method, url, headers=asked.headers, content=asked.body)
        if not asked.body and asked.method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            request.headers.pop("content-length", None)
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as cause:
            raise Broken(f"it cannot be reached ({_words(cause)})", sent=False) from cause
        except httpx.TransportError as cause:
            raise Broken(f"it did not answer ({_words(cause)})", sent=True) from cause
        try:
            await self._copy(response, upstream, answer)
        except httpx.TransportError as cause:
            raise Broken(f"its answer broke off ({_words(cause)})", sent=True) from cause
        finally:
            await response.aclose()

    async def _copy(self, response: httpx.Response, upstream: Upstream, answer: Answer) -> None:
        pieces = response.aiter_raw()
        first = await anext(pieces, b"")
        failed = response.status_code >= 500 or tells_of_a_fault(
            response.headers.get("content-type", "").encode("latin-1"), first
        )
        if failed and not await self._is_healthy(upstream):
            raise Broken(f"it answered {response.status_code} and is not healthy", sent=True)
        await answer.begin(response.status_code, passed_on(response.headers.raw))
        self._metrics.first_byte()
        if first:
            await answer.add(first)
        async for piece in pieces:
            await answer.add(piece)
        await answer.end()

    async def _is_healthy(self, upstream: Upstream) -> bool:
        try:
            asked = await self._client.get(f"{upstream.standing.url}/health", timeout=HEALTH_S)
        except httpx.TransportError:
            return False
        return asked.status_code == httpx.codes.OK


def _words(cause: Exception) -> str:
    return str(cause) or type(cause).__name__
