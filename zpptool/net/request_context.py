# SPDX-License-Identifier: Apache-2.0
"""The request that is being answered: its id and its span, from the HTTP server down to the calls of the ring."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from zpptool.net.tracing import NoSpan, Span


@dataclass(frozen=True)
class RequestContext:
    """One request.

    Attributes:
        id: its id; empty outside requests.
        span: of this process's part of it.
    """

    id: str = ""
    span: Span = field(default_factory=NoSpan)


NO_REQUEST = RequestContext()
CURRENT: ContextVar[RequestContext] = ContextVar("request", default=NO_REQUEST)
"""Set by the HTTP server's middleware for the task that answers a request, and for those that it begins."""


def current_request() -> RequestContext:
    """Return the request that this task, or the task that began it, is answering."""
    return CURRENT.get()
