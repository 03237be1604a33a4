# SPDX-License-Identifier: Apache-2.0
"""The gateway speaks for itself: paths, errors, addresses and headers of its responses."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import EVENTS, ONE_EVENT, ReceivedRequest, ToyServer, answering, chunk, gateway_of

pytestmark = pytest.mark.timeout(60)


def ask(method: str, url: str, **more: object) -> httpx.Response:
    return httpx.request(method, url, timeout=30, trust_env=False, **more)  # type: ignore[arg-type]


def test_a_slash_at_the_end_is_no_redirect(server: ToyServer) -> None:
    with gateway_of([server], keys=["k"]) as gateway:
        answer = ask("POST", f"{gateway.url}/v1/completions/?a=b", json={}, headers={"authorization": "Bearer k"})
        assert ask("POST", f"{gateway.url}/v1/completions/", json={}).status_code == 401
        assert ask("GET", f"{gateway.url}/livez/").status_code == 200
    assert answer.status_code == 200
    assert [request.path for request in server.received] == ["/v1/completions?a=b"]


def test_a_redirect_of_the_engine_leads_to_the_front(server: ToyServer) -> None:
    server.behave = answering(f"307 Temporary Redirect\r\nlocation: {server.url}/v1/elsewhere?x=y")
    with gateway_of([server]) as gateway:
        answer = ask("POST", f"{gateway.url}/v1/completions", json={})
    assert answer.status_code == 307
    assert answer.headers["location"] == "/v1/elsewhere?x=y"


@pytest.mark.parametrize("path", ["/v2/nothing", "/collective_rpc", "/sleep", "//v1/models", "/v1/models/../x"])
def test_a_path_that_does_not_exist_is_answered_by_the_front_as_json(server: ToyServer, path: str) -> None:
    with gateway_of([server]) as gateway, httpx.Client(trust_env=False, base_url=gateway.url) as client:
        answer = client.post(httpx.URL(gateway.url).copy_with(raw_path=path.encode()), json={})
    assert answer.status_code in (404, 405)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not server.received


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/v1/completions", "POST"),
        ("GET", "/pipeline/rollout", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_accept_is_405_with_those_it_does(
    server: ToyServer, method: str, path: str, allowed: str
) -> None:
    with gateway_of([server]) as gateway:
        answer = ask(method, gateway.url + path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert not server.received


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        ("404 Not Found\r\ncontent-type: text/plain", 404, "route_not_found"),
        ("405 Method Not Allowed\r\ncontent-type: text/plain\r\nallow: GET", 405, "method_not_allowed"),
    ],
)
def test_a_route_that_this_engine_lacks_is_a_json_error(server: ToyServer, head: str, status: int, code: str) -> None:
    server.behave = answering(head, b"Not Found")
    with gateway_of([server]) as gateway:
        answer = ask("POST", f"{gateway.url}/v1/embeddings", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_an_error_object_of_the_engine_is_forwarded_as_it_is(server: ToyServer) -> None:
    body = b'{"error":{"message":"The model `x` does not exist."}}'
    server.behave = answering("404 Not Found\r\ncontent-type: application/json", body)
    with gateway_of([server]) as gateway:
        assert ask("POST", f"{gateway.url}/v1/completions", json={}).content == body


def test_one_model_is_looked_up_in_the_list(server: ToyServer) -> None:
    card = {"id": "org/model", "object": "model", "max_model_len": 7}
    server.behave = answering("200 OK", json.dumps({"object": "list", "data": [card]}).encode())
    with gateway_of([server]) as gateway:
        found = ask("GET", f"{gateway.url}/v1/models/org/model")
        escaped = ask("GET", f"{gateway.url}/v1/models/org%2Fmodel")
        missing = ask("GET", f"{gateway.url}/v1/models/other")
        server.behave = answering("200 OK", b"<html>")
        broken = ask("GET", f"{gateway.url}/v1/models/other")
    assert found.json() == escaped.json() == card
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert (broken.status_code, broken.json()["error"]["code"]) == (502, "pipeline_lost")
    assert {request.path for request in server.received} == {"/v1/models"}


def test_a_stream_is_not_buffered_by_proxies(server: ToyServer) -> None:
    async def stream(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(ONE_EVENT) + chunk(b""))

    server.behave = stream
    with gateway_of([server]) as gateway:
        answer = ask("POST", f"{gateway.url}/v1/completions", json={})
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content == ONE_EVENT


def test_hop_by_hop_headers_are_not_forwarded(server: ToyServer) -> None:
    server.behave = answering("200 OK\r\nconnection: x-inner\r\nx-inner: 1\r\nkeep-alive: timeout=9\r\nx-outer: 2")
    headers = {"connection": "x-mine", "x-mine": "1", "te": "trailers", "x-yours": "2"}
    with gateway_of([server]) as gateway:
        answer = ask("POST", f"{gateway.url}/v1/completions", json={}, headers=headers)
    assert "x-inner" not in answer.headers
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-outer"] == "2"
    names = {line.partition(":")[0].lower() for line in server.received[0].headers}
    assert "x-yours" in names
    assert not names & {"x-mine", "te"}


def test_every_response_has_a_request_id_and_the_engine_gets_it(server: ToyServer) -> None:
    with gateway_of([server], keys=["k"]) as gateway:
        own = ask("GET", f"{gateway.url}/health", headers={"x-request-id": "mine"})
        new = {ask("GET", f"{gateway.url}{path}").headers["x-request-id"] for path in ("/readyz", "/nothing")}
        server.behave = answering("200 OK\r\nx-request-id: engine")
        authorization = {"authorization": "Bearer k"}
        forwarded = ask("POST", f"{gateway.url}/v1/completions", json={}, headers=authorization)
        named = {**authorization, "x-request-id": "mine-2"}
        ask("POST", f"{gateway.url}/v1/completions", json={}, headers=named)
        ask("POST", f"{gateway.url}/v1/completions", json={}, headers={**authorization, "x-request-id": "a b"})
    assert own.headers["x-request-id"] == "mine"
    assert len(new) == 2
    assert forwarded.headers.get_list("x-request-id") == ["engine"]
    lines = [line for one in server.received for line in one.headers if line.lower().startswith("x-request-id")]
    given = [line.partition(": ")[2] for line in lines]
    assert given[1] == "mine-2"
    assert re.fullmatch("[0-9a-f]{32}", given[0])
    assert re.fullmatch("[0-9a-f]{32}", given[2]), "an id with a blank is replaced"
