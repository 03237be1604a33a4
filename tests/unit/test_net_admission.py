# SPDX-License-Identifier: Apache-2.0
"""Admission in front of a real server: what is refused, what may end, and what is ended with an error."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from zpptool.net.admission import Admission
from zpptool.net.http_server import HttpServer

pytestmark = pytest.mark.timeout(60)
WAIT_S = 20


@dataclass
class Served:
    """A server whose answers end when `release` is set. `begun` is set when one has begun, `idle` by the admission."""

    server: HttpServer
    begun: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        routes = [Route("/metrics", _metrics), Route("/stream", self._stream), Route("/whole", self._whole)]
        self.admission = Admission(Starlette(routes=routes))
        self.server.start(lambda: self.admission)

    def close(self) -> None:
        self.server.loop.call_soon_threadsafe(self.admission.close, self.idle.set)

    def cut(self) -> None:
        self.server.loop.call_soon_threadsafe(self.admission.cut, self.idle.set)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.server.url}{path}", trust_env=False, timeout=WAIT_S)

    async def _until_released(self) -> None:
        self.begun.set()
        while not self.release.is_set():
            await asyncio.sleep(0.01)

    async def _stream(self, _request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            await self._until_released()
            yield "data: 2\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _whole(self, _request: Request) -> Response:
        await self._until_released()
        return PlainTextResponse("whole")


async def _metrics(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("metrics")


@pytest.fixture
def served() -> Iterator[Served]:
    with HttpServer("127.0.0.1", 0) as server:
        yield Served(server)


@pytest.mark.parametrize(("path", "text"), [("/stream", "data: 1\n\ndata: 2\n\n"), ("/whole", "whole")])
def test_answers_in_progress_end_while_new_requests_are_refused(served: Served, path: str, text: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.get, path)
        assert served.begun.wait(WAIT_S)
        served.close()
        for refused in map(served.get, ("/whole", "/health")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "pipeline_stopping")
            assert refused.headers["retry-after"] == "5"
        assert served.get("/metrics").text == "metrics"
        assert not served.idle.is_set()
        served.release.set()
        assert answer.result(WAIT_S).text == text
    assert served.idle.wait(WAIT_S)


def test_a_server_without_requests_is_idle_at_once(served: Served) -> None:
    served.close()
    assert served.idle.wait(WAIT_S)


def test_a_stream_that_is_cut_ends_with_an_error_event(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.get, "/stream")
        assert served.begun.wait(WAIT_S)
        served.close()
        served.cut()
        first, error, done = answer.result(WAIT_S).text.split("\n\n", 2)
    assert (first, done) == ("data: 1", "data: [DONE]\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "pipeline_stopping"
    assert served.idle.wait(WAIT_S)


def test_an_answer_that_is_cut_before_it_began_is_an_error(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.get, "/whole")
        assert served.begun.wait(WAIT_S)
        served.cut()
        assert answer.result(WAIT_S).status_code == 503
    assert served.idle.wait(WAIT_S)
