# SPDX-License-Identifier: Apache-2.0
"""The client of a trial against a small real server: its requests, the order of its results, and its errors."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("httpx")

from zpptool.errors import ExitCode, ZppError
from zpptool.net.openai_client import ApiClient, Generation

pytestmark = pytest.mark.timeout(20)


class Handler(BaseHTTPRequestHandler):
    """Completes [n] with [n + 1] after n hundredths of a second; 666 is an error, 777 is never answered."""

    server: Server

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        if self.path == "/tokenize":
            text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            self.answer(200, {"tokens": list(text.encode())})
            return
        (number,) = body["prompt"]
        if number == 666:
            self.answer(500, {"error": "the pipeline is broken"})
            return
        if number == 777:
            self.server.ended.wait(15)
        time.sleep(number / 100)
        self.answer(200, {"choices": [{"token_ids": [number + 1], "text": f"<{number + 1}>"}]})

    def answer(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Records its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, object]]] = []
        self.ended = threading.Event()

    def handle_error(self, *_args: object) -> None:
        """Ignore clients that disconnect: some tests do that on purpose."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def client(server: Server) -> Iterator[ApiClient]:
    with ApiClient(f"http://127.0.0.1:{server.server_port}", 10.0) as client:
        yield client


def test_prompts_and_completions_are_token_ids(server: Server, client: ApiClient) -> None:
    assert client.complete([4], 7, {"seed": 3}) == Generation((5,), "<5>", (4,))
    assert server.requests == [
        ("/v1/completions",
         {"prompt": [4], "max_tokens": 7, "temperature": 0.0, "return_token_ids": True, "seed": 3}),
    ]  # fmt: skip


def test_a_prompt_is_tokenized_alone_or_as_a_chat(server: Server, client: ApiClient) -> None:
    assert client.tokenize("ab", as_chat=False) == [97, 98]
    assert client.tokenize("ab", as_chat=True) == [97, 98]
    assert [body for _path, body in server.requests] == [
        {"prompt": "ab"},
        {"messages": [{"role": "user", "content": "ab"}], "add_generation_prompt": True},
    ]


def test_completions_are_in_the_order_of_the_prompts(client: ApiClient) -> None:
    prompts = [[30], [0], [20], [10]]
    began = time.monotonic()
    together = client.complete_all(prompts, 1, {}, at_once=4)
    took = time.monotonic() - began
    assert [answer.token_ids for answer in together] == [(31,), (1,), (21,), (11,)]
    assert took < 0.55
    assert client.complete_all(prompts[1:2], 1, {}, at_once=1) == together[1:2]
    assert client.complete_all([], 1, {}, at_once=0) == []


def test_a_server_is_ready_when_its_health_check_succeeds(server: Server, client: ApiClient) -> None:
    assert client.is_ready()
    with ApiClient("http://127.0.0.1:1", 1.0) as unreachable:
        assert not unreachable.is_ready()
    with ApiClient(f"http://127.0.0.1:{server.server_port}/elsewhere", 1.0) as elsewhere:
        assert not elsewhere.is_ready()


def test_an_error_of_the_server_is_shown(client: ApiClient) -> None:
    with pytest.raises(ZppError, match="answered /v1/completions with 500") as failed:
        client.complete([666], 1, {})
    assert failed.value.exit_code is ExitCode.STAGE
    assert "the pipeline is broken" in (failed.value.hint or "")


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with ApiClient("http://127.0.0.1:1", 1.0) as unreachable, pytest.raises(ZppError, match=r"127\.0\.0\.1:1 did not"):
        unreachable.complete([1], 1, {})


def test_an_error_does_not_wait_for_the_other_requests(client: ApiClient) -> None:
    began = time.monotonic()
    with pytest.raises(ZppError):
        client.complete_all([[666], [777], [777]], 1, {}, at_once=3)
    assert time.monotonic() - began < 5


def test_a_ctrl_c_does_not_wait_for_the_requests(client: ApiClient) -> None:
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.complete_all([[777], [777]], 1, {}, at_once=2)
    assert time.monotonic() - began < 5
