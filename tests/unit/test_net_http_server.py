# SPDX-License-Identifier: Apache-2.0
"""A real HTTP server in a thread: what it serves, how it is stopped, and which addresses it refuses."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from zpptool.errors import ExitCode, ZppError
from zpptool.net.http_server import HttpServer

pytestmark = pytest.mark.timeout(30)


async def _hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def app() -> Starlette:
    return Starlette(routes=[Route("/", _hello)])


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer("127.0.0.1", 0) as server:
        yield server


def test_an_application_is_served_as_soon_as_start_returns(server: HttpServer) -> None:
    server.start(app())
    assert server.is_running()
    assert httpx.get(server.url, trust_env=False, timeout=10).text == "hello"
    server.stop()
    assert not server.is_running()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False, timeout=10)


def test_a_function_makes_the_application_in_the_loop_of_the_server(server: HttpServer) -> None:
    made_in: list[tuple[asyncio.AbstractEventLoop, int]] = []

    def make() -> Starlette:
        made_in.append((asyncio.get_running_loop(), threading.get_ident()))
        return app()

    server.start(make)
    assert httpx.get(server.url, trust_env=False, timeout=10).text == "hello"
    ((loop, thread),) = made_in
    assert loop is server.loop
    assert thread != threading.get_ident()


def test_wait_returns_when_it_is_interrupted_from_another_thread(server: HttpServer) -> None:
    server.start(app())
    threading.Timer(0.2, server.interrupt).start()
    server.wait()
    assert server.is_running()


def test_a_port_that_is_taken_is_refused_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ZppError, match=f"the API cannot listen at 127.0.0.1:{port}") as refused:
            HttpServer("127.0.0.1", port)
    assert refused.value.exit_code is ExitCode.ADDRESS
    assert refused.value.hint == "Choose another port with --api-port."


def test_a_port_that_another_process_listens_at_by_now_is_refused_at_the_start() -> None:
    """Two sockets may be bound to one port with SO_REUSEADDR as long as neither listens."""
    with HttpServer("127.0.0.1", 0, name="the front", port_option="--port") as server:
        port = int(server.url.rpartition(":")[2])
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            with pytest.raises(ZppError, match="the front cannot listen at") as refused:
                server.start(lambda: app())
    assert refused.value.exit_code is ExitCode.ADDRESS
    assert refused.value.hint == "Choose another port with --port."
    with pytest.raises(ZppError):
        server.wait()
