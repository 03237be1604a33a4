# SPDX-License-Identifier: Apache-2.0
"""A server behind a front that answers with more than it should."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import ReceivedRequest, ToyServer, answering, gateway_of
from zpptool.serve.bounded_fetch import MAX_RESPONSE_BYTES, FetchError, fetch
from zpptool.serve.proxy import open_client

pytestmark = pytest.mark.timeout(60)


def fetched(url: str, timeout_s: float = 10.0) -> bytes:
    async def run() -> bytes:
        async with open_client() as client:
            return (await fetch(client, url, timeout_s)).body

    return asyncio.run(run())


def test_compressed_answers_are_neither_requested_nor_accepted(
    server: ToyServer, record_property: Callable[[str, object], None]
) -> None:
    metrics = b"# TYPE a counter\n" * 1_000_000
    record_property("bytes of the answer", len(compressed := gzip.compress(metrics)))
    record_property("bytes when decompressed", len(metrics))
    server.behave = answering("200 OK\r\ncontent-encoding: gzip", compressed)
    with pytest.raises(FetchError, match="compressed"):
        fetched(f"{server.url}/metrics")
    assert "accept-encoding: identity" in {line.lower() for line in server.received[0].headers}
    with gateway_of([server]) as gateway:
        assert "TYPE a" not in httpx.get(f"{gateway.url}/metrics", trust_env=False, timeout=30).text
        assert httpx.get(f"{gateway.url}/v1/models/m", trust_env=False, timeout=30).status_code == 502


def test_an_answer_beyond_the_limit_is_refused(server: ToyServer) -> None:
    server.behave = answering("200 OK", b"x" * (MAX_RESPONSE_BYTES + 1))
    with pytest.raises(FetchError, match="larger than"):
        fetched(f"{server.url}/metrics")


def test_an_answer_that_never_ends_is_refused_in_time(server: ToyServer) -> None:
    async def drip(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    server.behave = drip
    with pytest.raises(FetchError, match="no response in 1 s"):
        fetched(f"{server.url}/metrics", 1.0)
