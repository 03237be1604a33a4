# SPDX-License-Identifier: Apache-2.0
"""The HTTP gateway: a few routes of its own; those of the engines are forwarded to a pipeline.

It listens from the start: before anything is loaded the probes and the page answer, and other requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from zpptool.admin.prometheus import metrics_text
from zpptool.net.request_middleware import RequestContexts
from zpptool.net.tracing import tracer_of
from zpptool.ring.status import RingStatus
from zpptool.serve.admin_guard import AdminGuard
from zpptool.serve.api_keys import KeyGuard
from zpptool.serve.bounded_fetch import FetchError, fetch
from zpptool.serve.canonical_path import CanonicalPath
from zpptool.serve.changes_api import PlannedChanges
from zpptool.serve.cross_origin import CrossOrigin
from zpptool.serve.engine_routes import engine_routes
from zpptool.serve.extension import FrontExtension
from zpptool.serve.front_access import FrontAccess
from zpptool.serve.host_guard import HostGuard
from zpptool.serve.http_errors import method_not_allowed, no_such_route
from zpptool.serve.metrics import GatewayMetrics, merged, status_metrics
from zpptool.serve.model_lookup import ModelLookup
from zpptool.serve.pipeline_status import whole_status
from zpptool.serve.pool import Pool
from zpptool.serve.proxy import Proxy, ProxyLimits
from zpptool.serve.throughput import Rates

SCRAPE_S = 5.0
PAGE = "page.html"
FRONT = "front"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Allows the page its own style and script, and requests to this server; nothing else is loaded or requested."""

Describe = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class GatewayParts:
    """The dependencies of a gateway.

    Attributes:
        pool: the pipelines.
        describe: one function a pipeline, in the pool's order, that returns its description for the status.
        watch: coroutine functions that run until the gateway stops.
        client: for requests to the pipelines.
        limits: of one request.
        access: who may use the gateway.
        rings: returns the ring statuses that the local heads report, by pipeline name.
        changes: returns the sockets on which the local heads accept planned changes, by pipeline name.
        extension: what the gateway has beside; None for nothing.
    """

    pool: Pool
    describe: Sequence[Describe]
    watch: Sequence[Callable[[], Awaitable[None]]]
    client: httpx.AsyncClient
    limits: ProxyLimits
    access: FrontAccess
    rings: Callable[[], Mapping[str, RingStatus]]
    changes: Callable[[], Mapping[str, Path]] = dict
    extension: FrontExtension | None = None


class Gateway:
    """The gateway's routes.

    Args:
        parts: its dependencies.
    """

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts
        self._pool = parts.pool
        self._metrics = GatewayMetrics()
        self._rates = Rates(parts.pool, parts.client)
        self._page = files("zpptool.serve").joinpath(PAGE).read_text(encoding="utf-8")

    def app(self) -> Starlette:
        """The ASGI application."""
        parts = self._parts
        planned = PlannedChanges(parts.changes)
        models = ModelLookup(parts.pool, parts.client, keep_key=parts.limits.keep_key)
        proxy = Proxy(parts.pool, parts.client, parts.limits, self._metrics)
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/livez", self.livez),
                Route("/health", self.health),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
                Route("/pipeline/status", self.status),
                Route("/pipeline/rollout", planned.rollout, methods=["POST"]),
                Route("/pipeline/rebalance", planned.rebalance, methods=["POST"]),
                Route("/v1/models/{model_id:path}", models.model),
                *(parts.extension.routes(proxy) if parts.extension is not None else ()),
                *engine_routes(proxy),
            ],
            exception_handlers={HTTPException: _refuse_route},
            middleware=_guards(parts.access),
            lifespan=self._lifespan,
        )

    async def page(self, _request: Request) -> Response:
        """The HTML page that shows the ring live."""
        headers = {"content-security-policy": CONTENT_POLICY, "x-content-type-options": "nosniff"}
        return HTMLResponse(self._page, headers=headers)

    async def livez(self, _request: Request) -> Response:
        """Always 200: the gateway answers."""
        return JSONResponse({"alive": True})

    async def health(self, _request: Request) -> Response:
        """200 when a request would be sent to a pipeline at once, else 503; without a body, like vLLM's."""
        return Response(status_code=200 if self._pool.is_ready else 503)

    async def readyz(self, _request: Request) -> Response:
        """The status of `/health`, with each pipeline's phase and the reason why it is not ready."""
        ready = self._pool.is_ready
        body = {
            "ready": ready,
            "phase": self._pool.phase,
            "replicas": [
                {
                    "replica": each.name,
                    "ready": each.state.ready,
                    "phase": each.state.phase,
                    "why": each.state.why,
                }
                for each in self._pool.upstreams
            ],
        }
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"retry-after": "5"})

    async def status(self, _request: Request) -> Response:
        """Pipelines, stages and request counts as one JSON object."""
        return JSONResponse(await self._status(), headers={"cache-control": "no-store"})

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text: the engines' own metrics, then those of the gateway and the stages."""
        scraped = await asyncio.gather(*(self._scrape(each.state.url) for each in self._pool.upstreams))
        texts = {each.name: text for each, text in zip(self._pool.upstreams, scraped, strict=True)}
        own = generate_latest(self._metrics.registry) + status_metrics(await self._status(), self._pool)
        text = own.decode() + metrics_text(self._parts.rings())
        return Response(merged(texts, text), media_type=CONTENT_TYPE_LATEST)

    async def _status(self) -> dict[str, Any]:
        described = await asyncio.gather(*(describe() for describe in self._parts.describe))
        batches = self._parts.extension.status() if self._parts.extension is not None else []
        return {**whole_status(self._pool, self._metrics, described, self._rates.tokens_per_s()), "batches": batches}

    async def _scrape(self, url: str) -> str:
        if not url:
            return ""
        try:
            response = await fetch(self._parts.client, f"{url}/metrics", SCRAPE_S)
        except FetchError:
            return ""
        return response.text if response.is_ok else ""

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        extension = [self._parts.extension.watch] if self._parts.extension is not None else []
        tasks = [asyncio.ensure_future(watch()) for watch in (*self._parts.watch, self._rates.watch, *extension)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._parts.client.aclose()


def _guards(access: FrontAccess) -> list[Middleware]:
    """What a request passes before it reaches a route, in this order."""
    return [
        Middleware(RequestContexts, tracer=tracer_of(FRONT), place=FRONT),
        Middleware(CanonicalPath),
        Middleware(HostGuard, names=access.hosts),
        Middleware(CrossOrigin, origins=access.origins),
        *([Middleware(KeyGuard, keys=access.keys)] if access.keys else []),
        Middleware(AdminGuard, has_keys=bool(access.keys)),
    ]


async def _refuse_route(request: Request, error: Exception) -> Response:
    """The error object for a path that does not exist, or does not accept the method."""
    assert isinstance(error, HTTPException)
    if error.status_code != httpx.codes.METHOD_NOT_ALLOWED:
        return no_such_route(request.url.path).response()
    allowed = sorted(method.strip() for method in (error.headers or {}).get("Allow", "").split(","))
    return method_not_allowed(request.method, request.url.path, allowed).response()
