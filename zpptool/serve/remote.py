# SPDX-License-Identifier: Apache-2.0
"""A pipeline behind an address: asked every second whether it is ready, and never started or ended from here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from zpptool.errors import usage_error
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pool import Pool

ASK_EVERY_S = 1.0
ASK_S = 3.0


def checked_address(text: str) -> str:
    """An upstream's address without a slash at its end.

    Raises:
        ZppError: (USAGE) it is none.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as cause:
        raise usage_error(f"--upstream {text}: {cause}", "For example http://10.0.0.2:8000.") from cause
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.query:
        raise usage_error(f"--upstream {text} is not the address of a server", "For example http://10.0.0.2:8000.")
    return str(url).rstrip("/")


class RemotePipeline:
    """Looks after one pipeline that runs elsewhere.

    Args:
        number: its place in the pool.
        url: its address.
    """

    def __init__(self, number: int, url: str, pool: Pool, client: httpx.AsyncClient) -> None:
        self._number, self._url, self._pool, self._client = number, url, pool, client

    async def watch(self) -> None:
        """Keep the pool told until cancelled."""
        generation, was_ready = 0, False
        while True:
            ready, phase, why = await self._ask()
            generation += ready and not was_ready
            was_ready = ready
            self._pool.update(self._number, BackendState(self._url, ready, phase, generation, why=why))
            await asyncio.sleep(ASK_EVERY_S)

    async def describe(self) -> dict[str, Any]:
        """What the front there tells; a bare API server tells nothing."""
        try:
            asked = await self._client.get(f"{self._url}/pipeline/status", timeout=ASK_S)
            told = asked.json() if asked.status_code == httpx.codes.OK else {}
        except (httpx.TransportError, ValueError):
            return {}
        if not isinstance(told, Mapping):
            return {}
        behind: Sequence[Mapping[str, Any]] = told.get("replicas") or ({},)
        head = behind[0].get("head") if len(behind) == 1 else None
        return {"model": told.get("model"), "head": head, "stages": list(told.get("stages") or ())}

    async def _ask(self) -> tuple[bool, str, str | None]:
        """Whether it is ready, its phase, and what keeps it."""
        try:
            asked = await self._client.get(f"{self._url}/health", timeout=ASK_S)
        except httpx.TransportError as cause:
            return False, "unreachable", f"{self._url} cannot be reached: {str(cause) or type(cause).__name__}"
        if asked.status_code == httpx.codes.OK:
            return True, "ready", None
        return False, "not ready", f"{self._url}/health says {asked.status_code}"
