# SPDX-License-Identifier: Apache-2.0
"""Requests that are refused, and the JSON of errors."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class BadRequest(Exception):
    """A request that cannot be answered.

    Attributes:
        message: what is wrong, one sentence.
        param: the field at fault.
        status: the HTTP status of the response.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status


def error_body(message: str, kind: str, param: str | None, code: int) -> dict[str, Any]:
    """OpenAI's error object, with the HTTP status as its code, as vLLM has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def refuse(_request: Request, refused: Exception) -> Response:
    """The response to a `BadRequest`."""
    assert isinstance(refused, BadRequest)
    kind = "not_found_error" if refused.status == 404 else "invalid_request_error"
    return JSONResponse(error_body(refused.message, kind, refused.param, refused.status), refused.status)
