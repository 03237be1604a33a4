# SPDX-License-Identifier: Apache-2.0
"""What the front says when it cannot pass a request on: OpenAI's error object, as a response or as an event."""

from __future__ import annotations

import json
from typing import Any

RETRY_AFTER_S = 5
"""What a client that is told to come back is told to wait."""


class Refusal(Exception):
    """A request that the front answers itself, with an error.

    Attributes:
        status: of the HTTP answer.
        message: one sentence.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, a word that programs can tell refusals apart by.
    """

    def __init__(self, status: int, message: str, *, kind: str = "server_error", code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code = status, message, kind, code

    def body(self) -> bytes:
        """The error object."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """The error object as a server-sent event, for a stream that has begun; OpenAI's clients raise on it."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body())).encode())]
        if self.status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def not_whole(message: str) -> Refusal:
    """Nobody can answer now; later somebody may."""
    return Refusal(503, message, code="pipeline_not_ready")


def broken_off(message: str) -> Refusal:
    """The answer had begun, or may not be asked for twice."""
    return Refusal(502, message, code="pipeline_lost")


def too_late(after_s: float) -> Refusal:
    """The request timeout has passed."""
    return Refusal(504, f"no whole answer in {after_s:g} s, which is this server's limit", code="timeout")


def too_large(limit: int) -> Refusal:
    """The body is larger than is taken."""
    message = f"the request's body is larger than {limit} bytes, which is this server's limit"
    return Refusal(413, message, kind="invalid_request_error", code="request_too_large")


def no_key() -> Refusal:
    """The API key is missing or wrong."""
    message = "this server wants an API key: Authorization: Bearer KEY"
    return Refusal(401, message, kind="authentication_error", code="invalid_api_key")
