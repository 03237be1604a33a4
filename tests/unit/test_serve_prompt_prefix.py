# SPDX-License-Identifier: Apache-2.0
"""Requests whose prompts begin alike have one key, and go to one pipeline; an outlier gets none for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import ReceivedRequest, ToyServer, answer_ok, gateway_of
from zpptool.serve import load_balancing
from zpptool.serve.prompt_prefix import PARSED_BYTES, prefix_key

pytestmark = pytest.mark.timeout(60)
SYSTEM = {"role": "system", "content": "You answer briefly. " * 100}


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_the_key_depends_on_the_beginning_of_the_prompt_alone() -> None:
    first = body(messages=[SYSTEM, {"role": "user", "content": "a"}], temperature=0)
    second = body(temperature=1, messages=[SYSTEM, {"role": "user", "content": "b"}])
    assert prefix_key(first) == prefix_key(second) != b""
    assert prefix_key(body(prompt="a")) != prefix_key(body(prompt="b"))
    assert prefix_key(body(prompt=[1, 2])) != prefix_key(body(prompt=[1, 3]))
    assert prefix_key(body(prompt="a")) != prefix_key(body(prompt="a", model="other"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b"[" * 100_000, b" " * (PARSED_BYTES + 1)])
def test_a_body_without_a_prompt_has_no_key(text: bytes) -> None:
    assert prefix_key(text) == b""


@pytest.fixture
def servers() -> Iterator[tuple[ToyServer, ToyServer]]:
    both = ToyServer(), ToyServer()
    yield both
    for server in both:
        server.close()


def ask(url: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/v1/completions", content=content, headers=headers, timeout=30, trust_env=False)


def test_prompts_that_begin_alike_share_a_pipeline(servers: tuple[ToyServer, ToyServer]) -> None:
    for server in servers:
        server.behave = answer_ok
    with gateway_of(servers, by_prefix=True) as gateway:
        for number in range(6):
            prompt = "the same beginning " * 100 + str(number)
            assert ask(gateway.url, body(prompt=prompt)).status_code == 200
        assert sorted(len(server.received) for server in servers) == [0, 6]
        for number in range(24):
            ask(gateway.url, body(prompt=f"{number} another beginning"))
    assert all(len(server.received) > 3 for server in servers)


async def always_500(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    status = b"200 OK" if "/health" in request.line else b"500 Oops"
    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    await writer.drain()


def test_a_pipeline_that_only_fails_is_ejected_and_tried_again(
    servers: tuple[ToyServer, ToyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_balancing, "SUSPECT_S", 3.0)
    bad, good = servers
    bad.behave, good.behave = always_500, answer_ok
    with gateway_of(servers) as gateway:
        failed = 0
        while failed < load_balancing.ERRORS_TO_EJECT:
            failed += ask(gateway.url, body(prompt="fails by turns")).status_code == 500
        ejected = time.monotonic()
        while time.monotonic() < ejected + 1:
            assert ask(gateway.url, body(prompt="only the other answers")).status_code == 200
        bad.behave = answer_ok
        before = len(bad.received)
        deadline = time.monotonic() + 20
        while len(bad.received) == before:
            assert ask(gateway.url, body(prompt="again")).status_code == 200
            assert time.monotonic() < deadline, "it was not tried again"
