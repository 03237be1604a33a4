# SPDX-License-Identifier: Apache-2.0
"""The Batch API as an extension of a front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Route
from starlette.types import ASGIApp

from zpptool.batch.api.routes import BatchRoutes
from zpptool.batch.api.store import BatchStore
from zpptool.batch.api.worker import BatchWorker
from zpptool.batch.file_operations import FileOperations
from zpptool.batch.server import BatchServer, open_client
from zpptool.checkpoint.output_lock import Held, hold
from zpptool.errors import ZppError, usage_error

LOCK_NAME = "lock"
WAIT_FOREVER_S = float("inf")
"""A batch of a front waits for its pipelines as long as the front runs; its own window ends it."""


class BatchApi:
    """The Batch API of one front. Implements `serve.extension.FrontExtension`.

    Args:
        directory: of files and batches; created if need be.

    Raises:
        ZppError: (USAGE) the directory cannot be used; (FAILURE) another front uses it.
    """

    def __init__(self, directory: Path) -> None:
        self._files = FileOperations()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = hold(directory / LOCK_NAME)
            self._lock.__enter__()
            self._store = BatchStore(directory, self._files)
        except Held as cause:
            raise ZppError(f"another front uses --batch-dir {directory}", "Name another directory.") from cause
        except OSError as cause:
            raise usage_error(f"--batch-dir {directory} cannot be used: {cause.strerror}") from cause
        self._worker: BatchWorker | None = None

    def routes(self, proxy: ASGIApp) -> Sequence[Route]:
        """The routes; requests of batches are answered by the front's own proxy, without a connection."""
        client = open_client("http://front", None, httpx.ASGITransport(proxy))
        self._worker = BatchWorker(self._store, BatchServer(client, WAIT_FOREVER_S), self._files)
        return BatchRoutes(self._store, self._worker, self._files).routes()

    async def watch(self) -> None:
        """Compute batches until the front stops."""
        assert self._worker is not None
        await self._worker.watch()

    def status(self) -> list[dict[str, Any]]:
        """The batches that are not over, the newest first."""
        progress = self._worker.progress if self._worker is not None else {}
        return [
            {
                "id": batch.id,
                "status": batch.status,
                "total": batch.total,
                "done": batch.completed,
                "failed": batch.failed,
                **(progress[batch.id].as_json() if batch.id in progress else {}),
            }
            for batch in self._store.batches_of(None)
            if batch.is_open
        ]

    def close(self) -> None:
        """Let another front use the directory."""
        self._lock.__exit__(None, None, None)
