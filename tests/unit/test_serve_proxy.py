# SPDX-License-Identifier: Apache-2.0
"""The gateway over real sockets: bytes and streams forwarded unchanged, and requests at pipelines that break."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import EVENTS, ONE_EVENT, ReceivedRequest, ToyServer, answer_ok, chunk, gateway_of
from zpptool.serve.load_balancing import BackendState

pytestmark = pytest.mark.timeout(60)

BODY = {"prompt": "hello", "max_tokens": 3}
PATH = "/v1/completions"


@pytest.fixture
def servers() -> Iterator[tuple[ToyServer, ToyServer]]:
    both = ToyServer(), ToyServer()
    yield both
    for server in both:
        server.close()


def post(url: str, **more: object) -> httpx.Response:
    return httpx.post(url + PATH, json=BODY, timeout=30, trust_env=False, **more)  # type: ignore[arg-type]


async def breaks_at_once(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def breaks_after_headers(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS)
    await writer.drain()
    writer.close()


async def breaks_in_the_stream(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(ONE_EVENT))
    await writer.drain()
    writer.close()


async def breaks_within_an_event(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(ONE_EVENT + b"data: {"))
    await writer.drain()
    writer.close()


async def answers_500(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 500 Internal Server Error\r\ncontent-length: 14\r\n\r\n{"error": "x"}')


async def sends_an_error_event(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(b'data: {"error": {"message": "lost stage 1"}}\n\n') + chunk(b""))


def test_bytes_are_forwarded_unchanged_both_ways(servers) -> None:
    server, _ = servers
    seen = (
        b"HTTP/1.1 207 Multi-Status\r\nx-odd: a\r\nx-odd: b\r\ncontent-encoding: gzip\r\n"
        b"content-length: 5\r\n\r\n\x00\xff\x01\n\r"
    )

    async def odd(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(seen)

    server.behave = odd
    body = b'{"prompt":  "\\u00e9",\r\n "x": 1.0e0 }'
    with (
        gateway_of([server]) as gateway,
        socket.create_connection(("127.0.0.1", int(gateway.url[-5:].strip(":")))) as raw,
    ):
        raw.sendall(
            b"POST /v1/completions?a=%20b&c HTTP/1.1\r\nhost: localhost\r\nx-mine: 1\r\n"
            b"content-type: application/json\r\nauthorization: Bearer theirs\r\nconnection: close\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode() + body
        )  # fmt: skip
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    request = server.received[0]
    assert request.line == "POST /v1/completions?a=%20b&c HTTP/1.1"
    assert request.body == body
    assert {"content-type: application/json", "x-mine: 1", "authorization: Bearer theirs"} <= set(request.headers)
    assert not any(line.lower().startswith(("accept-encoding", "user-agent")) for line in request.headers)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert content == seen.partition(b"\r\n\r\n")[2]
    assert head.startswith(b"HTTP/1.1 207")
    assert head.count(b"x-odd: ") == 2
    assert b"content-encoding: gzip" in head


def test_a_stream_is_not_buffered(servers) -> None:
    """The server sends the second event only once the client has received the first."""
    server, _ = servers
    seen = threading.Event()

    async def step_by_step(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await asyncio.to_thread(seen.wait, 20)
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    server.behave = step_by_step
    with (
        gateway_of([server]) as gateway,
        httpx.stream("POST", gateway.url + PATH, json=BODY, timeout=30, trust_env=False) as got,
    ):
        chunks = got.iter_raw()
        assert next(chunks) == ONE_EVENT
        seen.set()
        assert b"".join(chunks) == b"data: [DONE]\n\n"


def test_a_client_that_disconnects_cancels_its_request(servers) -> None:
    server, _ = servers
    noticed = threading.Event()

    async def endless(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await request.reader.read() == b""
        noticed.set()

    server.behave = endless
    with gateway_of([server]) as gateway:
        with httpx.stream("POST", gateway.url + PATH, json=BODY, timeout=30, trust_env=False) as got:
            next(got.iter_raw())
        assert noticed.wait(20)
        gateway.until(lambda: gateway.pool.in_flight == 0)


def test_a_client_that_disconnects_before_the_first_byte_does_too(servers) -> None:
    server, _ = servers
    noticed = threading.Event()

    async def silent(request: ReceivedRequest, _writer: asyncio.StreamWriter) -> None:
        assert await request.reader.read() == b""
        noticed.set()

    server.behave = silent
    with gateway_of([server]) as gateway:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(gateway.url + PATH, json=BODY, timeout=0.5, trust_env=False)
        assert noticed.wait(20)


@pytest.mark.parametrize("breaks", [breaks_at_once, breaks_after_headers], ids=lambda one: one.__name__)
def test_a_request_that_breaks_before_the_first_byte_is_repeated_elsewhere(breaks, servers) -> None:
    bad, good = servers
    bad.behave = breaks
    with gateway_of(servers) as gateway:
        answers = [post(gateway.url) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert bad.received
    assert len(good.received) == 4
    assert {request.body for request in good.received} == {request.body for request in bad.received}


@pytest.mark.parametrize("fails", [answers_500, sends_an_error_event], ids=lambda one: one.__name__)
def test_an_error_of_a_broken_pipeline_is_not_forwarded(fails, servers) -> None:
    bad, good = servers
    bad.behave, bad.healthy = fails, False
    with gateway_of(servers) as gateway:
        assert [post(gateway.url).status_code for _ in range(3)] == [200] * 3
    assert bad.received
    assert len(good.received) == 3


@pytest.mark.parametrize(("fails", "status"), [(answers_500, 500), (sends_an_error_event, 200)])
def test_an_error_of_a_healthy_pipeline_is_the_answer(fails, status, servers) -> None:
    server, _ = servers
    server.behave = fails
    with gateway_of([server]) as gateway:
        answer = post(gateway.url)
    assert answer.status_code == status
    assert b"error" in answer.content
    assert len(server.received) == 1


def test_a_stream_that_breaks_ends_with_openais_error(servers) -> None:
    server, other = servers
    server.behave = breaks_in_the_stream
    with gateway_of([server]) as gateway:
        answer = post(gateway.url)
    first, error, rest = answer.content.split(b"\n\n")
    assert (first + b"\n\n", rest) == (ONE_EVENT, b"")
    fault = json.loads(error.removeprefix(b"data: "))["error"]
    assert (fault["type"], fault["code"], fault["param"]) == ("server_error", "pipeline_lost", None)
    assert "pipeline 0 was lost" in fault["message"]
    assert not other.received


def test_after_half_an_event_the_connection_is_closed(servers) -> None:
    server, _ = servers
    server.behave = breaks_within_an_event
    with gateway_of([server]) as gateway, pytest.raises(httpx.RemoteProtocolError):
        post(gateway.url)


def test_a_request_that_changes_something_is_not_repeated(servers) -> None:
    server, other = servers
    server.behave = other.behave = breaks_at_once
    with gateway_of(servers) as gateway:
        answer = httpx.post(gateway.url + "/v1/load_lora_adapter", json={}, timeout=30, trust_env=False)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "pipeline_lost"
    assert len(server.received) + len(other.received) == 1


def test_a_request_that_kills_each_start_of_a_pipeline_is_given_up_first(servers) -> None:
    """Each attempt loses the head, and another one is started."""
    server, _ = servers

    async def dies_of_it(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        gateway.update(0, BackendState(server.url, ready=True, phase="ready", generation=len(server.received) + 1))
        writer.close()

    server.behave = dies_of_it
    with gateway_of([server]) as gateway:
        answer = post(gateway.url)
    assert answer.status_code == 502
    assert "lost 3 times with this request; last: pipeline 0 was lost" in answer.json()["error"]["message"]
    assert len(server.received) == 3


def test_requests_wait_until_a_pipeline_is_ready(servers) -> None:
    server, _ = servers
    with gateway_of([server], ready=False) as gateway, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, gateway.url) for _ in range(8)]
        gateway.until(lambda: gateway.pool.waiting == 8)
        ready = httpx.get(gateway.url + "/readyz", trust_env=False)
        assert (ready.status_code, ready.json()["phase"]) == (503, "new")
        gateway.update(0, BackendState(server.url, ready=True, phase="ready", generation=1))
        assert [answer.result(30).status_code for answer in answers] == [200] * 8


def test_a_request_that_has_waited_too_long_gets_the_reason(servers) -> None:
    server, _ = servers
    with gateway_of([server], ready=False, deadline_s=0.3) as gateway:
        why = "stage 1 was killed by SIGKILL"
        gateway.update(0, BackendState("", phase="waiting to restart", generation=2, why=why))
        answer = post(gateway.url)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("pipeline_not_ready", "server_error")
    assert "waiting to restart (stage 1 was killed by SIGKILL)" in error["message"]


def test_no_request_waits_for_a_pipeline_that_was_given_up(servers) -> None:
    with gateway_of(servers[:1], ready=False) as gateway:
        gateway.update(0, BackendState("", phase="ended", hopeless=True, why="stage 0 exited with code 1"))
        answer = post(gateway.url)
    assert answer.status_code == 503
    assert "stage 0 exited with code 1" in answer.json()["error"]["message"]


def test_while_draining_answers_finish_and_new_requests_are_refused(servers) -> None:
    server, _ = servers
    proceed = threading.Event()

    async def slow(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await asyncio.to_thread(proceed.wait, 20)
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    server.behave = slow
    with (
        gateway_of([server]) as gateway,
        httpx.stream("POST", gateway.url + PATH, json=BODY, timeout=30, trust_env=False) as got,
    ):
        chunks = got.iter_raw()
        next(chunks)
        gateway.call_on_loop(gateway.pool.drain)
        assert post(gateway.url).status_code == 503
        ready = httpx.get(gateway.url + "/readyz", trust_env=False)
        assert (ready.status_code, ready.json()["phase"]) == (503, "draining")
        proceed.set()
        assert b"".join(chunks) == b"data: [DONE]\n\n"


def test_a_body_that_is_too_large_is_refused(servers) -> None:
    server, _ = servers
    options = {"headers": {"content-type": "application/json"}, "timeout": 30, "trust_env": False}
    with gateway_of([server], body_bytes=1000) as gateway:
        answer = httpx.post(gateway.url + PATH, content=b"x" * 1001, **options)
        in_chunks = httpx.post(gateway.url + PATH, content=iter([b"x" * 600] * 2), **options)
        fits = httpx.post(gateway.url + PATH, content=b"x" * 1000, **options)
    assert [answer.status_code, in_chunks.status_code, fits.status_code] == [413, 413, 200]
    assert answer.json()["error"]["code"] == "request_too_large"
    assert len(server.received) == 1


def test_a_request_that_exceeds_the_timeout_is_cancelled(servers) -> None:
    server, _ = servers
    disconnected = threading.Event()

    async def silent(request: ReceivedRequest, _writer: asyncio.StreamWriter) -> None:
        await request.reader.read()
        disconnected.set()

    server.behave = silent
    with gateway_of([server], request_s=0.3) as gateway:
        answer = post(gateway.url)
        assert disconnected.wait(20)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"


def test_the_least_loaded_pipeline_gets_the_request(servers) -> None:
    one, other = servers
    proceed = threading.Event()

    async def busy(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        assert await asyncio.to_thread(proceed.wait, 20)
        await answer_ok(_request, writer)

    one.behave = busy
    with gateway_of(servers) as gateway, ThreadPoolExecutor(4) as pool:
        pending = pool.submit(post, gateway.url)
        gateway.until(lambda: one.received or other.received)
        if not one.received:
            pending = pool.submit(post, gateway.url)
            gateway.until(lambda: one.received)
        before = len(other.received)
        for _ in range(5):
            assert post(gateway.url).status_code == 200
        assert (len(one.received), len(other.received)) == (1, before + 5)
        proceed.set()
        assert pending.result(20).status_code == 200


def test_idle_pipelines_take_turns(servers) -> None:
    with gateway_of(servers) as gateway:
        for _ in range(6):
            post(gateway.url)
    assert [len(server.received) for server in servers] == [3, 3]


def test_two_hundred_streams_at_once(servers) -> None:
    """All are open at the same time: none ends before the last has begun."""
    streams = 200
    all_open = threading.Event()
    for server in servers:

        async def answers_when_all_are_open(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
            writer.write(EVENTS + chunk(ONE_EVENT))
            await writer.drain()
            while not all_open.is_set():
                if len(servers[0].received) + len(servers[1].received) == streams:
                    all_open.set()
                await asyncio.sleep(0.02)
            writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

        server.behave = answers_when_all_are_open

    async def ask_all(url: str) -> list[bytes]:
        async with httpx.AsyncClient(timeout=50, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:

            async def ask() -> bytes:
                return (await client.post(url + PATH, json=BODY)).content

            return await asyncio.gather(*(ask() for _ in range(streams)))

    with ExitStack() as stack:
        gateway = stack.enter_context(gateway_of(servers))
        answers = asyncio.run(ask_all(gateway.url))
    assert answers == [ONE_EVENT + b"data: [DONE]\n\n"] * streams
