# SPDX-License-Identifier: Apache-2.0
"""How far a run has come, in the status of the front that `run-batch` starts for its own pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp

from zpptool.batch.progress import Progress


class RunStatus:
    """The status of one run. Implements `serve.extension.FrontExtension`.

    Attributes:
        progress: of the run; None before its first line. The front's thread reads it.

    Args:
        name: of the run, for people.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.progress: Progress | None = None

    def routes(self, _proxy: ASGIApp) -> Sequence[Route]:
        """None."""
        return ()

    async def watch(self) -> None:
        """Nothing is to be done."""
        await asyncio.Event().wait()

    def status(self) -> list[dict[str, Any]]:
        """The run, once it has begun."""
        progress = self.progress
        if progress is None:
            return []
        return [{"id": self._name, "status": "in_progress", **progress.as_json()}]

    def close(self) -> None:
        """Nothing is held."""
