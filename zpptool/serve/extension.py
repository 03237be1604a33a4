# SPDX-License-Identifier: Apache-2.0
"""What a front has beside its own routes and those of the engines: the Batch API, where `--batch-dir` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from starlette.routing import Route
from starlette.types import ASGIApp


class FrontExtension(Protocol):
    """An extension of one front. All but `close` is called on the event loop's thread."""

    def routes(self, proxy: ASGIApp) -> Sequence[Route]:
        """The routes of the extension; called once, before `watch`.

        Args:
            proxy: answers a request for an engine.
        """
        ...

    async def watch(self) -> None:
        """Work until the front stops, which cancels it."""
        ...

    def status(self) -> list[dict[str, Any]]:
        """What the extension is doing, for `batches` in the front's status."""
        ...

    def close(self) -> None:
        """Give back what it holds; called when the front has stopped."""
        ...
