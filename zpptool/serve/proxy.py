# SPDX-License-Identifier: Apache-2.0
"""One request through the gateway: forwarded to a pipeline, and its response back byte for byte, as it arrives.

As long as nothing was sent to the client, a request at a pipeline that breaks is repeated, there or at another one,
until the deadline. After that the client gets an error within its stream. When a client disconnects, its request is
cancelled at the pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import httpx

from zpptool.net.request_context import current_request
from zpptool.net.tracing import tracer_of
from zpptool.serve.body_budget import BodyBudget
from zpptool.serve.bounded_fetch import FetchError, fetch
from zpptool.serve.hop_headers import response_headers
from zpptool.serve.http_errors import Refusal, method_not_allowed, no_such_route, pipeline_lost, timed_out
from zpptool.serve.http_exchange import (
    ClientDisconnected,
    ClientResponse,
    ProxiedRequest,
    Receive,
    Scope,
    Send,
    is_error_event,
    read_request,
    wait_for_disconnect,
)
from zpptool.serve.load_balancing import Upstream
from zpptool.serve.media_types import media_type_refusal
from zpptool.serve.metrics import GatewayMetrics
from zpptool.serve.pool import Pool
from zpptool.serve.prompt_prefix import prefix_key

CONNECT_S = 5.0
HEALTH_S = 2.0
KEEPALIVE_S = 2.0
"""Shorter than the 5 s after which uvicorn closes an idle connection, so that none is reused while it is closing."""
DEFAULT_BUFFERED_BYTES = 1 << 30
MAX_ATTEMPTS = 20
MAX_LOSSES = 3
"""A request during which so many pipelines, or starts of one pipeline, were lost is assumed to be the cause."""


@dataclass(frozen=True)
class ProxyLimits:
    """Limits of one request, and how it is routed.

    Attributes:
        body_bytes: the most bytes of its body.
        request_s: seconds from its first byte to the response's last; None for no limit.
        keep_key: whether the client's `Authorization` header is forwarded to the upstreams.
        buffered_bytes: the most bytes of the bodies of all requests in progress.
        by_prefix: whether requests whose prompts begin alike go to the same pipeline, as long as it is not too busy.
    """

    body_bytes: int
    request_s: float | None
    keep_key: bool
    buffered_bytes: int = DEFAULT_BUFFERED_BYTES
    by_prefix: bool = False


class UpstreamBroken(Exception):
    """A pipeline broke during a request.

    Attributes:
        sent: whether the request may have reached it.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def open_client() -> httpx.AsyncClient:
    """A client for all pipelines: as many connections as requests, and no timeout except for connecting."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEPALIVE_S),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        follow_redirects=False,
    )


class Proxy:
    """The ASGI application that forwards requests.

    Args:
        pool: the pipelines.
        client: for requests to them.
        limits: of one request.
        metrics: counts requests and retries.
    """

    def __init__(self, pool: Pool, client: httpx.AsyncClient, limits: ProxyLimits, metrics: GatewayMetrics) -> None:
        self._pool, self._client, self._limits, self._metrics = pool, client, limits, metrics
        self._budget = BodyBudget(limits.buffered_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        limits, response = self._limits, ClientResponse(send)
        began = time.monotonic()
        try:
            refusal = media_type_refusal(scope["path"], scope["headers"])
            if refusal is not None:
                raise refusal
            with self._budget.account() as account:
                async with asyncio.timeout(limits.request_s):
                    request = await read_request(scope, receive, limits.body_bytes, account, keep_key=limits.keep_key)
                    await self._answer_while_connected(request, receive, response)
        except Refusal as refusal:
            await response.refuse(refusal)
        except TimeoutError:
            await response.refuse(timed_out(limits.request_s or 0.0))
        except ClientDisconnected:
            response.status = response.status or 499  # nginx's status for it; only the metrics see it
        self._metrics.record_answer(response.status, time.monotonic() - began)

    async def _answer_while_connected(
        self, request: ProxiedRequest, receive: Receive, response: ClientResponse
    ) -> None:
        work = asyncio.ensure_future(self._answer(request, response))
        disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnected
            await work
        finally:
            for task in (work, disconnect):
                task.cancel()
            await asyncio.gather(work, disconnect, return_exceptions=True)

    async def _answer(self, request: ProxiedRequest, response: ClientResponse) -> None:
        """Forward a request until one pipeline has answered it.

        Raises:
            Refusal: (503) no pipeline becomes ready in time; (502) a pipeline broke, and the request must not be
                repeated or was repeated too often.
        """
        failures: Counter[tuple[str, int]] = Counter()
        losses: set[tuple[str, int]] = set()
        deadline = time.monotonic() + self._pool.deadline_s
        prefix = prefix_key(request.body) if self._limits.by_prefix and len(self._pool.upstreams) > 1 else b""
        while True:
            with tracer_of("front").span("wait for a pipeline", current_request().span.parent):
                upstream = await self._pool.take(failures, deadline, prefix)
            generation = upstream.state.generation
            try:
                with self._pool.answering(upstream):
                    await self._forward(upstream, request, response)
                self._pool.answered(upstream, response.status)
                return
            except UpstreamBroken as broken:
                self._pool.suspect(upstream)
                failures[upstream.name, generation] += 1
                reason = f"{upstream.name} was lost: {broken}"
                if response.begun or (broken.sent and not request.is_repeatable):
                    raise pipeline_lost(reason) from broken
                if broken.sent:
                    losses.add((upstream.name, generation))
                if len(losses) >= MAX_LOSSES:
                    raise pipeline_lost(f"lost {len(losses)} times with this request; last: {reason}") from broken
                if failures.total() >= MAX_ATTEMPTS or time.monotonic() >= deadline:
                    message = f"asked {failures.total()} times without an answer; last: {reason}"
                    raise pipeline_lost(message) from broken
                self._metrics.record_retry()
                current_request().span.event("retry", reason=reason)

    async def _forward(self, upstream: Upstream, request: ProxiedRequest, response: ClientResponse) -> None:
        """Send a request to one pipeline and its response to the client.

        Raises:
            UpstreamBroken: the pipeline broke; `response.begun` tells whether anything was sent to the client.
        """
        url = httpx.URL(upstream.state.url).copy_with(raw_path=request.target)
        upstream_request = httpx.Request(request.method, url, headers=request.headers, content=request.body)
        if not request.body and request.method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            upstream_request.headers.pop("content-length", None)
        try:
            upstream_response = await self._client.send(upstream_request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as cause:
            raise UpstreamBroken(f"it cannot be reached ({_text_of(cause)})", sent=False) from cause
        except httpx.TransportError as cause:
            raise UpstreamBroken(f"it did not answer ({_text_of(cause)})", sent=True) from cause
        try:
            _refuse_plain_error(upstream_response, request)
            await self._copy(upstream_response, upstream, response)
        except httpx.TransportError as cause:
            raise UpstreamBroken(f"its answer broke off ({_text_of(cause)})", sent=True) from cause
        finally:
            await upstream_response.aclose()

    async def _copy(self, upstream_response: httpx.Response, upstream: Upstream, response: ClientResponse) -> None:
        chunks = upstream_response.aiter_raw()
        first = await anext(chunks, b"")
        failed = upstream_response.status_code >= 500 or is_error_event(
            upstream_response.headers.get("content-type", "").encode("latin-1"), first
        )
        if failed and not await self._is_healthy(upstream):
            raise UpstreamBroken(f"it answered {upstream_response.status_code} and is not healthy", sent=True)
        headers = response_headers(upstream_response.headers.raw, upstream.state.url)
        await response.begin(upstream_response.status_code, headers)
        self._metrics.record_first_byte()
        if first:
            await response.add(first)
        async for chunk in chunks:
            await response.add(chunk)
        await response.end()

    async def _is_healthy(self, upstream: Upstream) -> bool:
        try:
            return (await fetch(self._client, f"{upstream.state.url}/health", HEALTH_S)).is_ok
        except FetchError:
            return False


def _refuse_plain_error(answer: httpx.Response, request: ProxiedRequest) -> None:
    """Replace a 404 or 405 of an engine's router, which is plain text, by the error object that clients parse.

    Raises:
        Refusal: (404 or 405) the engine behind the gateway lacks the route.
    """
    if answer.status_code not in (404, 405) or "json" in answer.headers.get("content-type", ""):
        return
    path = request.target.partition(b"?")[0].decode("latin-1")
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise no_such_route(path)
    allowed = [method.strip() for method in answer.headers.get("allow", "").split(",") if method.strip()]
    raise method_not_allowed(request.method, path, allowed)


def _text_of(cause: Exception) -> str:
    return str(cause) or type(cause).__name__
