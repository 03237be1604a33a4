# SPDX-License-Identifier: Apache-2.0
"""Administration: requests that restart stages, move layers or change an engine.

A front with API keys accepts them with a key, which the key guard checks. A front without keys accepts them only from
its own machine, and never through a proxy, which would make everybody appear local. No browser page may make them:
browsers mark what a page requests with `Origin` or `Sec-Fetch-Site`, and programs send neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from zpptool.net.addresses import is_ip_address, is_loopback
from zpptool.serve.engine_routes import ADMINISTER
from zpptool.serve.http_errors import Refusal, administration_refused
from zpptool.serve.probe_paths import READING

OWN_PREFIX = "/pipeline/"
OF_BROWSERS = ("origin", "sec-fetch-site")
OF_PROXIES = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def is_administration(scope: Mapping[str, Any]) -> bool:
    """Whether a request changes a pipeline or an engine.

    Args:
        scope: of the ASGI call.
    """
    path: str = scope["path"]
    return scope["method"] not in READING and (path.startswith(OWN_PREFIX) or path in ADMINISTER)


def refusal_of(headers: Mapping[str, str], client: str, *, has_keys: bool) -> Refusal | None:
    """Why an administrative request is refused; None for one that is accepted.

    Args:
        headers: of the request, with names in lower case.
        client: the address of the connection's other end.
        has_keys: whether the front has API keys; then the request has shown one.
    """
    if any(name in headers for name in OF_BROWSERS):
        return administration_refused("a page in a browser")
    if has_keys:
        return None
    if any(name in headers for name in OF_PROXIES):
        return administration_refused("a client behind a proxy")
    mapped = client.rpartition("::ffff:")[2] if client.startswith("::ffff:") else client
    if not (is_ip_address(mapped) and is_loopback(mapped)):
        return administration_refused("another machine")
    return None


class AdminGuard:
    """ASGI middleware that answers administrative requests that are not accepted with 403.

    Args:
        app: the application behind it.
        has_keys: whether the front has API keys.
    """

    def __init__(self, app: ASGIApp, *, has_keys: bool) -> None:
        self._app, self._has_keys = app, has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request that is accepted; refuse any other."""
        if scope["type"] == "http" and is_administration(scope):
            client = scope["client"][0] if scope.get("client") else ""
            refusal = refusal_of(Headers(scope=scope), client, has_keys=self._has_keys)
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
