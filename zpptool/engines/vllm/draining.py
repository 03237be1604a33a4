# SPDX-License-Identifier: Apache-2.0
"""Middleware of vLLM's API server (`--middleware`) that drains it when this process is asked to."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from zpptool.net.admission import Admission
from zpptool.process.signals import CUT_SIGNAL, DRAIN_SIGNAL, end_this_process


class DrainingMiddleware:
    """Answers requests until `DRAIN_SIGNAL`, then those in progress; then it ends this process as SIGTERM does.
    `CUT_SIGNAL` ends those in progress with an error.

    Made in the event loop of the server, which runs in the main thread.

    Args:
        app: vLLM's application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._admission = Admission(app)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(DRAIN_SIGNAL, self._admission.close, end_this_process)
        loop.add_signal_handler(CUT_SIGNAL, self._admission.cut, end_this_process)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, as ASGI defines it."""
        await self._admission(scope, receive, send)
