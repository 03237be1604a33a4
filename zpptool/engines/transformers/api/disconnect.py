# SPDX-License-Identifier: Apache-2.0
"""Ends the work for a client that has disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

CLIENT_CLOSED_REQUEST = 499
"""The status of a response that no client receives."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response that `work` makes; if the client disconnects first, `work` is cancelled.

    Args:
        request: its body has been read.
        work: makes the response.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_until_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        leaving.cancel()
        working.cancel()


async def _wait_until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
