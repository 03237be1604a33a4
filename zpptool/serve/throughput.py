# SPDX-License-Identifier: Apache-2.0
"""Tokens a second, from the counters of the engines' own servers, asked once a second while somebody is looking."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

import httpx

from zpptool.serve.metrics import generated_tokens
from zpptool.serve.pool import Pool

SAMPLE_S = 1.0
WINDOW_S = 5.0
LOOKED_AT_S = 10.0
"""Nobody has asked for so long: nothing is sampled any more."""
ASK_S = 2.0
MEANT = ("vllm:generation_tokens_total", "zpp:generation_tokens_total")


class Rates:
    """Recent token counts of every pipeline.

    Args:
        pool: the pipelines.
        client: asks them.
    """

    def __init__(self, pool: Pool, client: httpx.AsyncClient) -> None:
        self._pool, self._client = pool, client
        self._samples: dict[str, deque[tuple[float, float]]] = {each.name: deque() for each in pool.upstreams}
        self._looked_at = -LOOKED_AT_S

    def tokens_per_s(self) -> dict[str, float | None]:
        """By pipeline; None where it does not tell, or not yet."""
        self._looked_at = time.monotonic()
        return {name: rate_of(samples) for name, samples in self._samples.items()}

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            if time.monotonic() - self._looked_at < LOOKED_AT_S:
                await asyncio.gather(*(self._sample(each.name, each.standing.url) for each in self._pool.upstreams))
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self, name: str, url: str) -> None:
        if not url:
            return
        with suppress(httpx.TransportError):
            asked = await self._client.get(f"{url}/metrics", timeout=ASK_S)
            if asked.status_code == httpx.codes.OK and any(word in asked.text for word in MEANT):
                add_sample(self._samples[name], time.monotonic(), generated_tokens(asked.text))


def add_sample(samples: deque[tuple[float, float]], now: float, tokens: float) -> None:
    """Remember a count, and forget those that are older than the window; a count that fell began anew."""
    if samples and tokens < samples[-1][1]:
        samples.clear()
    samples.append((now, tokens))
    while samples[0][0] < now - WINDOW_S and len(samples) > 2:
        samples.popleft()


def rate_of(samples: deque[tuple[float, float]]) -> float | None:
    """Tokens a second over the window; None of fewer than two samples."""
    if len(samples) < 2:
        return None
    (began, first), (ended, last) = samples[0], samples[-1]
    return (last - first) / max(ended - began, 1e-3)
