# SPDX-License-Identifier: Apache-2.0
"""Requests that pages of other origins make from a browser: answered for the allowed origins, refused for all others.

The front answers preflight requests itself, since they carry no key and must not reach an engine. A page of an origin
that is not allowed cannot make a preflighted request; what it could send without a preflight is refused by its
`Origin` header, which a browser adds to every request that is no plain read.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from zpptool.net.request_middleware import REQUEST_ID
from zpptool.serve.front_access import ANY
from zpptool.serve.http_errors import origin_refused
from zpptool.serve.probe_paths import READING

PREFLIGHT = "access-control-request-method"


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an `Origin` header names the host of the request. Schemes are not compared, since a proxy may have ended
    TLS; an opaque origin (`null`) belongs to no site."""
    _, _, authority = origin.lower().partition("://")
    return bool(authority) and authority == host.lower()


class CrossOrigin:
    """ASGI middleware that answers `OPTIONS` and refuses writes of origins that are not allowed.

    Args:
        app: the application behind it.
        origins: those that are allowed; `*` for any.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._cors = CORSMiddleware(
            app, allow_origins=tuple(origins), allow_methods=("*",), allow_headers=("*",), expose_headers=(REQUEST_ID,)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight; add the headers that admit a page to other responses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and (ANY in self._origins or origin.lower() in self._origins)
        if scope["method"] == "OPTIONS":
            refused = not allowed or PREFLIGHT not in headers
        else:
            foreign = origin is not None and not is_same_origin(origin, headers.get("host", ""))
            refused = foreign and not allowed and scope["method"] not in READING
        if refused:
            await origin_refused(origin).response()(scope, receive, send)
        else:
            await self._cors(scope, receive, send)
