# SPDX-License-Identifier: Apache-2.0
"""A client that disconnects: its sequences end at once, also those that wait for their turn."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("transformers")
pytest.importorskip("starlette")

from tests.scripted import Scripted
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.net.http_server import HttpServer

pytestmark = [pytest.mark.torch, pytest.mark.timeout(60)]
MANY = 60
"""More than the pool has threads."""
SOON_S = 5


@pytest.fixture
def script() -> Iterator[Scripted]:
    script = Scripted(reply=[50])
    yield script
    script.gate.set()


@pytest.fixture
def server(tiny_model: Callable[..., Path], script: Scripted) -> Iterator[HttpServer]:
    served = served_model(tiny_model("llama"), script.generate, lambda: script.healthy)
    with HttpServer("127.0.0.1", 0) as server:
        server.start(Front(served).app())
        yield server


def send(server: HttpServer, **body: object) -> socket.socket:
    """A connection on which a request for a completion was sent."""
    url = httpx.URL(server.url)
    content = json.dumps({"prompt": "ask", **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    connection = socket.create_connection((url.host, url.port or 0), SOON_S)
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_request_leaves_the_queue_at_once(server: HttpServer, script: Scripted, stream: bool) -> None:
    script.gate.clear()
    connection = send(server, n=MANY, max_tokens=5, stream=stream)
    wait_for(lambda: len(script.asked) == MANY)
    connection.close()
    wait_for(lambda: script.closed == MANY)
    assert httpx.get(f"{server.url}/load", trust_env=False).json() == {"server_load": 0}
    script.gate.set()
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, trust_env=False, timeout=SOON_S)
    assert answer.status_code == 200
