# SPDX-License-Identifier: Apache-2.0
"""Tokens per second, from the counters of the engines' own servers, sampled once a second while the status is read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

import httpx

from zpptool.serve.bounded_fetch import FetchError, fetch
from zpptool.serve.metrics import generated_tokens
from zpptool.serve.pool import Pool

SAMPLE_S = 1.0
WINDOW_S = 5.0
IDLE_AFTER_S = 10.0
"""Sampling pauses when the rates have not been read for so long."""
SCRAPE_S = 2.0
TOKEN_COUNTERS = ("vllm:generation_tokens_total", "zpp:generation_tokens_total")


class Rates:
    """Recent token counts of every pipeline.

    Args:
        pool: the pipelines.
        client: for requests to their servers.
    """

    def __init__(self, pool: Pool, client: httpx.AsyncClient) -> None:
        self._pool, self._client = pool, client
        self._samples: dict[str, deque[tuple[float, float]]] = {each.name: deque() for each in pool.upstreams}
        self._last_read_at = -IDLE_AFTER_S

    def tokens_per_s(self) -> dict[str, float | None]:
        """Tokens per second by pipeline; None where its server has no token counter, or has too few samples yet."""
        self._last_read_at = time.monotonic()
        return {name: rate_of(samples) for name, samples in self._samples.items()}

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            if time.monotonic() - self._last_read_at < IDLE_AFTER_S:
                await asyncio.gather(*(self._sample(each.name, each.state.url) for each in self._pool.upstreams))
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self, name: str, url: str) -> None:
        if not url:
            return
        with suppress(FetchError):
            response = await fetch(self._client, f"{url}/metrics", SCRAPE_S)
            text = response.text
            if response.is_ok and any(counter in text for counter in TOKEN_COUNTERS):
                add_sample(self._samples[name], time.monotonic(), generated_tokens(text))


def add_sample(samples: deque[tuple[float, float]], now: float, tokens: float) -> None:
    """Append a count and drop those older than the window. A count below the last one means that the counter restarted:
    then all earlier ones are dropped."""
    if samples and tokens < samples[-1][1]:
        samples.clear()
    samples.append((now, tokens))
    while samples[0][0] < now - WINDOW_S and len(samples) > 2:
        samples.popleft()


def rate_of(samples: deque[tuple[float, float]]) -> float | None:
    """Tokens per second over the window; None for fewer than two samples."""
    if len(samples) < 2:
        return None
    (began, first), (ended, last) = samples[0], samples[-1]
    return (last - first) / max(ended - began, 1e-3)
