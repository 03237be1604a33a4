# SPDX-License-Identifier: Apache-2.0
"""A pipeline behind `--upstream`: its readiness is polled once a second; it is never started or stopped from here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from zpptool.serve.bounded_fetch import FetchError, fetch
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pool import Pool

POLL_S = 1.0
TIMEOUT_S = 3.0


class RemotePipeline:
    """Keeps the state of one remote pipeline current.

    Args:
        number: its index in the pool.
        url: its base URL.
        pool: where its state is kept.
        client: for requests to it.
    """

    def __init__(self, number: int, url: str, pool: Pool, client: httpx.AsyncClient) -> None:
        self._number, self._url, self._pool, self._client = number, url, pool, client

    async def watch(self) -> None:
        """Update its state in the pool until cancelled."""
        generation, was_ready = 0, False
        while True:
            ready, phase, why = await self._poll()
            generation += ready and not was_ready
            was_ready = ready
            self._pool.update(self._number, BackendState(self._url, ready, phase, generation, why=why))
            await asyncio.sleep(POLL_S)

    async def describe(self) -> dict[str, Any]:
        """Model, head and stages from the status of the front there; empty for a server that has no such status."""
        try:
            response = await fetch(self._client, f"{self._url}/pipeline/status", TIMEOUT_S)
            status = json.loads(response.body) if response.is_ok else {}
        except (FetchError, ValueError, RecursionError):
            return {}
        if not isinstance(status, Mapping):
            return {}
        replicas: Sequence[Mapping[str, Any]] = status.get("replicas") or ({},)
        head = replicas[0].get("head") if len(replicas) == 1 else None
        stages = list(status.get("stages") or ())
        return {"model": status.get("model"), "chat": status.get("chat"), "head": head, "stages": stages}

    async def _poll(self) -> tuple[bool, str, str | None]:
        """Whether it is ready, its phase, and why it is not ready."""
        try:
            response = await fetch(self._client, f"{self._url}/health", TIMEOUT_S)
        except FetchError as cause:
            return False, "unreachable", f"{self._url} cannot be reached: {cause}"
        if response.is_ok:
            return True, "ready", None
        return False, "not ready", f"{self._url}/health answers with status {response.status}"
