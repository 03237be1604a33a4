# SPDX-License-Identifier: Apache-2.0
"""The front over real sockets: bytes as they are, streams as they come, and what becomes of requests that break."""

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

from tests.fronts import EVENTS, ONE_EVENT, Heard, ToyServer, chunk, fine, front_of
from zpptool.serve.load_balancing import BackendState

pytestmark = pytest.mark.timeout(60)

ASK = {"prompt": "hello", "max_tokens": 3}
PATH = "/v1/completions"


@pytest.fixture
def servers() -> Iterator[tuple[ToyServer, ToyServer]]:
    both = ToyServer(), ToyServer()
    yield both
    for server in both:
        server.close()


def post(url: str, **more: object) -> httpx.Response:
    return httpx.post(url + PATH, json=ASK, timeout=30, trust_env=False, **more)  # type: ignore[arg-type]


async def breaks_at_once(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def breaks_after_headers(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS)
    await writer.drain()
    writer.close()


async def breaks_in_the_stream(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(ONE_EVENT))
    await writer.drain()
    writer.close()


async def breaks_within_an_event(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(ONE_EVENT + b"data: {"))
    await writer.drain()
    writer.close()


async def says_500(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 500 Internal Server Error\r\ncontent-length: 14\r\n\r\n{"error": "x"}')


async def says_an_error_event(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS + chunk(b'data: {"error": {"message": "lost stage 1"}}\n\n') + chunk(b""))


def test_bytes_pass_both_ways_as_they_are(servers) -> None:
    server, _ = servers
    seen = (
        b"HTTP/1.1 207 Multi-Status\r\nx-odd: a\r\nx-odd: b\r\ncontent-encoding: gzip\r\n"
        b"content-length: 5\r\n\r\n\x00\xff\x01\n\r"
    )

    async def odd(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(seen)

    server.behave = odd
    body = b'{"prompt":  "\\u00e9",\r\n "x": 1.0e0 }'
    with front_of([server]) as front, socket.create_connection(("127.0.0.1", int(front.url[-5:].strip(":")))) as raw:
        raw.sendall(
            b"POST /v1/odd%2Fpath?a=%20b&c HTTP/1.1\r\nhost: me\r\ncontent-type: application/json\r\nx-mine: 1\r\n"
            b"authorization: Bearer theirs\r\nconnection: close\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode() + body
        )  # fmt: skip
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    heard = server.heard[0]
    assert heard.line == "POST /v1/odd%2Fpath?a=%20b&c HTTP/1.1"
    assert heard.body == body
    assert {"content-type: application/json", "x-mine: 1", "authorization: Bearer theirs"} <= set(heard.headers)
    assert not any(line.lower().startswith(("accept-encoding", "user-agent")) for line in heard.headers)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert content == seen.partition(b"\r\n\r\n")[2]
    assert head.startswith(b"HTTP/1.1 207")
    assert head.count(b"x-odd: ") == 2
    assert b"content-encoding: gzip" in head


def test_a_stream_is_not_held_back(servers) -> None:
    """The second event is only made once the client has seen the first."""
    server, _ = servers
    seen = threading.Event()

    async def step_by_step(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await asyncio.to_thread(seen.wait, 20)
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    server.behave = step_by_step
    with (
        front_of([server]) as front,
        httpx.stream("POST", front.url + PATH, json=ASK, timeout=30, trust_env=False) as got,
    ):
        pieces = got.iter_raw()
        assert next(pieces) == ONE_EVENT
        seen.set()
        assert b"".join(pieces) == b"data: [DONE]\n\n"


def test_a_client_that_leaves_takes_its_request_with_it(servers) -> None:
    server, _ = servers
    noticed = threading.Event()

    async def endless(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await heard.reader.read() == b""
        noticed.set()

    server.behave = endless
    with front_of([server]) as front:
        with httpx.stream("POST", front.url + PATH, json=ASK, timeout=30, trust_env=False) as got:
            next(got.iter_raw())
        assert noticed.wait(20)
        front.until(lambda: front.pool.in_flight == 0)


def test_a_client_that_leaves_before_the_first_byte_does_too(servers) -> None:
    server, _ = servers
    noticed = threading.Event()

    async def silent(heard: Heard, _writer: asyncio.StreamWriter) -> None:
        assert await heard.reader.read() == b""
        noticed.set()

    server.behave = silent
    with front_of([server]) as front:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(front.url + PATH, json=ASK, timeout=0.5, trust_env=False)
        assert noticed.wait(20)


@pytest.mark.parametrize("breaks", [breaks_at_once, breaks_after_headers], ids=lambda one: one.__name__)
def test_what_breaks_before_a_byte_is_asked_elsewhere(breaks, servers) -> None:
    bad, good = servers
    bad.behave = breaks
    with front_of(servers) as front:
        answers = [post(front.url) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert bad.heard
    assert len(good.heard) == 4
    assert {heard.body for heard in good.heard} == {heard.body for heard in bad.heard}


@pytest.mark.parametrize("fails", [says_500, says_an_error_event], ids=lambda one: one.__name__)
def test_an_error_of_a_pipeline_that_broke_is_not_passed_on(fails, servers) -> None:
    bad, good = servers
    bad.behave, bad.healthy = fails, False
    with front_of(servers) as front:
        assert [post(front.url).status_code for _ in range(3)] == [200] * 3
    assert bad.heard
    assert len(good.heard) == 3


@pytest.mark.parametrize(("fails", "status"), [(says_500, 500), (says_an_error_event, 200)])
def test_an_error_of_a_healthy_pipeline_is_the_answer(fails, status, servers) -> None:
    server, _ = servers
    server.behave = fails
    with front_of([server]) as front:
        answer = post(front.url)
    assert answer.status_code == status
    assert b"error" in answer.content
    assert len(server.heard) == 1


def test_what_breaks_in_the_stream_ends_with_openais_error(servers) -> None:
    server, other = servers
    server.behave = breaks_in_the_stream
    with front_of([server]) as front:
        answer = post(front.url)
    first, error, rest = answer.content.split(b"\n\n")
    assert (first + b"\n\n", rest) == (ONE_EVENT, b"")
    told = json.loads(error.removeprefix(b"data: "))["error"]
    assert (told["type"], told["code"], told["param"]) == ("server_error", "pipeline_lost", None)
    assert "pipeline 0 was lost" in told["message"]
    assert not other.heard


def test_an_event_that_is_cut_in_two_is_not_made_whole_with_something_else(servers) -> None:
    server, _ = servers
    server.behave = breaks_within_an_event
    with front_of([server]) as front, pytest.raises(httpx.RemoteProtocolError):
        post(front.url)


def test_what_changes_something_is_not_asked_twice(servers) -> None:
    server, other = servers
    server.behave = other.behave = breaks_at_once
    with front_of(servers) as front:
        answer = httpx.post(front.url + "/v1/load_lora_adapter", json={}, timeout=30, trust_env=False)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "pipeline_lost"
    assert len(server.heard) + len(other.heard) == 1


def test_a_request_that_ends_every_start_of_a_pipeline_is_given_up_before_the_pipeline_is(servers) -> None:
    """Each time it is asked, the head is lost and another one is started."""
    server, _ = servers

    async def is_ended_by_it(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        front.update(0, BackendState(server.url, ready=True, phase="ready", generation=len(server.heard) + 1))
        writer.close()

    server.behave = is_ended_by_it
    with front_of([server]) as front:
        answer = post(front.url)
    assert answer.status_code == 502
    assert "lost 3 times with this request; last: pipeline 0 was lost" in answer.json()["error"]["message"]
    assert len(server.heard) == 3


def test_requests_wait_until_a_pipeline_is_ready(servers) -> None:
    server, _ = servers
    with front_of([server], ready=False) as front, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, front.url) for _ in range(8)]
        front.until(lambda: front.pool.waiting == 8)
        ready = httpx.get(front.url + "/readyz", trust_env=False)
        assert (ready.status_code, ready.json()["phase"]) == (503, "new")
        front.update(0, BackendState(server.url, ready=True, phase="ready", generation=1))
        assert [answer.result(30).status_code for answer in answers] == [200] * 8


def test_a_request_that_has_waited_too_long_is_told_why(servers) -> None:
    server, _ = servers
    with front_of([server], ready=False, deadline_s=0.3) as front:
        front.update(0, BackendState("", phase="waiting to restart", generation=2, why="stage 1 was killed by SIGKILL"))
        answer = post(front.url)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("pipeline_not_ready", "server_error")
    assert "waiting to restart (stage 1 was killed by SIGKILL)" in error["message"]


def test_nobody_waits_for_a_pipeline_that_was_given_up(servers) -> None:
    with front_of(servers[:1], ready=False) as front:
        front.update(0, BackendState("", phase="ended", hopeless=True, why="stage 0 exited with code 1"))
        answer = post(front.url)
    assert answer.status_code == 503
    assert "stage 0 exited with code 1" in answer.json()["error"]["message"]


def test_while_draining_answers_end_and_new_requests_are_refused(servers) -> None:
    server, _ = servers
    go_on = threading.Event()

    async def slow(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT))
        await writer.drain()
        assert await asyncio.to_thread(go_on.wait, 20)
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    server.behave = slow
    with (
        front_of([server]) as front,
        httpx.stream("POST", front.url + PATH, json=ASK, timeout=30, trust_env=False) as got,
    ):
        pieces = got.iter_raw()
        next(pieces)
        front.do(front.pool.drain)
        assert post(front.url).status_code == 503
        ready = httpx.get(front.url + "/readyz", trust_env=False)
        assert (ready.status_code, ready.json()["phase"]) == (503, "draining")
        go_on.set()
        assert b"".join(pieces) == b"data: [DONE]\n\n"


def test_a_body_that_is_too_large_is_refused(servers) -> None:
    server, _ = servers
    with front_of([server], body_bytes=1000) as front:
        answer = httpx.post(front.url + PATH, content=b"x" * 1001, timeout=30, trust_env=False)
        in_pieces = httpx.post(front.url + PATH, content=iter([b"x" * 600] * 2), timeout=30, trust_env=False)
        fits = httpx.post(front.url + PATH, content=b"x" * 1000, timeout=30, trust_env=False)
    assert [answer.status_code, in_pieces.status_code, fits.status_code] == [413, 413, 200]
    assert answer.json()["error"]["code"] == "request_too_large"
    assert len(server.heard) == 1


def test_a_request_that_takes_too_long_is_cut(servers) -> None:
    server, _ = servers
    gone = threading.Event()

    async def silent(heard: Heard, _writer: asyncio.StreamWriter) -> None:
        await heard.reader.read()
        gone.set()

    server.behave = silent
    with front_of([server], request_s=0.3) as front:
        answer = post(front.url)
        assert gone.wait(20)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"


def test_the_least_loaded_pipeline_is_asked(servers) -> None:
    one, other = servers
    go_on = threading.Event()

    async def busy(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        assert await asyncio.to_thread(go_on.wait, 20)
        await fine(_heard, writer)

    one.behave = busy
    with front_of(servers) as front, ThreadPoolExecutor(4) as pool:
        held = pool.submit(post, front.url)
        front.until(lambda: one.heard or other.heard)
        if not one.heard:
            held = pool.submit(post, front.url)
            front.until(lambda: one.heard)
        before = len(other.heard)
        for _ in range(5):
            assert post(front.url).status_code == 200
        assert (len(one.heard), len(other.heard)) == (1, before + 5)
        go_on.set()
        assert held.result(20).status_code == 200


def test_without_a_load_pipelines_take_turns(servers) -> None:
    with front_of(servers) as front:
        for _ in range(6):
            post(front.url)
    assert [len(server.heard) for server in servers] == [3, 3]


def test_two_hundred_streams_at_once(servers) -> None:
    """All are open at the same time: none ends before the last has begun."""
    streams = 200
    everybody = threading.Event()
    for server in servers:

        async def together(_heard: Heard, writer: asyncio.StreamWriter) -> None:
            writer.write(EVENTS + chunk(ONE_EVENT))
            await writer.drain()
            while not everybody.is_set():
                if len(servers[0].heard) + len(servers[1].heard) == streams:
                    everybody.set()
                await asyncio.sleep(0.02)
            writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

        server.behave = together

    async def ask_all(url: str) -> list[bytes]:
        async with httpx.AsyncClient(timeout=50, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:

            async def ask() -> bytes:
                return (await client.post(url + PATH, json=ASK)).content

            return await asyncio.gather(*(ask() for _ in range(streams)))

    with ExitStack() as stack:
        front = stack.enter_context(front_of(servers))
        answers = asyncio.run(ask_all(front.url))
    assert answers == [ONE_EVENT + b"data: [DONE]\n\n"] * streams
