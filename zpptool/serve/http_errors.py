# SPDX-License-Identifier: Apache-2.0
"""The gateway's own error answers: OpenAI's error object, as a response or as a server-sent event."""

from __future__ import annotations

import json
from typing import Any

RETRY_AFTER_S = 5
"""The `Retry-After` header of a 503, in seconds."""


class Refusal(Exception):
    """An error with which the gateway answers a request itself.

    Attributes:
        status: the HTTP status.
        message: one sentence.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, by which programs distinguish errors.
    """

    def __init__(self, status: int, message: str, *, kind: str = "server_error", code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code = status, message, kind, code

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
        return headers


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
    return Refusal(413, message, kind="invalid_request_error", code="request_too_large")


def invalid_api_key() -> Refusal:
    """401: the API key is missing or wrong."""
    message = "this server requires an API key: Authorization: Bearer KEY"
    return Refusal(401, message, kind="authentication_error", code="invalid_api_key")
