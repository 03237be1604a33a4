# SPDX-License-Identifier: Apache-2.0
"""The gateway's own error answers: OpenAI's error object, as a response or as a server-sent event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

INVALID_REQUEST = "invalid_request_error"
RETRY_AFTER_S = 5
"""The `Retry-After` header of a 503, in seconds."""


class Refusal(Exception):
    """An error with which the gateway answers a request itself.

    Attributes:
        status: the HTTP status.
        message: one sentence.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, by which programs distinguish errors.
        allowed: the methods that the path accepts, for the `Allow` header of a 405.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "server_error", code: str, allowed: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code = status, message, kind, code
        self.allowed = tuple(allowed)

    def body(self) -> bytes:
        """The error object as JSON."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """The error object as a server-sent event, for a stream that has begun; OpenAI's clients raise on it."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the response."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body())).encode())]
        if self.status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.allowed:
            headers.append((b"allow", ", ".join(self.allowed).encode()))
        return headers

    def response(self) -> Response:
        """The error as a response of Starlette."""
        headers = {name.decode(): value.decode() for name, value in self.headers()}
        return Response(self.body(), self.status, headers)


def not_ready(message: str) -> Refusal:
    """503: no pipeline can answer now; a later request may succeed."""
    return Refusal(503, message, code="pipeline_not_ready")


def pipeline_lost(message: str) -> Refusal:
    """502: a pipeline was lost after the answer had begun, or during a request that must not be repeated."""
    return Refusal(502, message, code="pipeline_lost")


def timed_out(after_s: float) -> Refusal:
    """504: the request timeout, in seconds, has passed."""
    return Refusal(504, f"no whole answer in {after_s:g} s, which is this server's limit", code="timeout")


def body_too_large(limit: int) -> Refusal:
    """413: the body has more bytes than the limit."""
    message = f"the request's body is larger than {limit} bytes, which is this server's limit"
    return Refusal(413, message, kind=INVALID_REQUEST, code="request_too_large")


def bodies_too_large(limit: int) -> Refusal:
    """503: the bodies of all requests in progress have more bytes than the limit."""
    message = f"the bodies of the requests in progress have {limit} bytes, which is this server's limit; try later"
    return Refusal(503, message, code="server_busy")


def invalid_api_key() -> Refusal:
    """401: the API key is missing or wrong."""
    message = "this server requires an API key: Authorization: Bearer KEY"
    return Refusal(401, message, kind="authentication_error", code="invalid_api_key")


def no_such_route(path: str) -> Refusal:
    """404: neither this server nor the engine behind it has the path."""
    message = f"{path[:200]} is not a path of this server; the OpenAI API is below /v1"
    return Refusal(404, message, kind=INVALID_REQUEST, code="route_not_found")


def method_not_allowed(method: str, path: str, allowed: Sequence[str]) -> Refusal:
    """405: the path does not accept the method, but those in `allowed`."""
    accepts = f", but {', '.join(allowed)}" if allowed else ""
    message = f"{path[:200]} does not accept {method[:20]}{accepts}"
    return Refusal(405, message, kind=INVALID_REQUEST, code="method_not_allowed", allowed=allowed)


def model_not_found(model: str) -> Refusal:
    """404: no model is served under that name."""
    message = f"the model {model[:200]} does not exist; GET /v1/models lists those that do"
    return Refusal(404, message, kind=INVALID_REQUEST, code="model_not_found")


def two_hosts(count: int) -> Refusal:
    """400: a request of HTTP/1.1 has exactly one `Host` header."""
    return Refusal(400, f"the request has {count} Host headers, not one", kind=INVALID_REQUEST, code="invalid_host")


def wrong_host(host: str) -> Refusal:
    """421: the request is for a host name that is not this server's."""
    message = f"{host[:200]} is not a host name of this server; use its IP address, or start it with --allowed-host"
    return Refusal(421, message, kind=INVALID_REQUEST, code="unknown_host")


def origin_refused(origin: str | None) -> Refusal:
    """403: pages of that origin may not call this server."""
    page = f"pages of {origin[:200]}" if origin is not None else "OPTIONS without an Origin header"
    message = f"{page}: not allowed by this server; whom it allows is set with --allowed-origins"
    return Refusal(403, message, kind=INVALID_REQUEST, code="origin_not_allowed")


def administration_refused(requester: str) -> Refusal:
    """403: administration is not accepted from there."""
    message = (
        f"this server takes no administration from {requester}: send the request from a program, with an API key of"
        " this server, or, where it has none, from its own machine without a proxy"
    )
    return Refusal(403, message, kind=INVALID_REQUEST, code="administration_refused")


def unsupported_media_type(given: str, wanted: str) -> Refusal:
    """415: the body has another media type than the one that the path takes."""
    message = f"the body is {given[:100] or 'of no media type'}; send it with content-type: {wanted}"
    return Refusal(415, message, kind=INVALID_REQUEST, code="unsupported_media_type")
