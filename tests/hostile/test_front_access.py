# SPDX-License-Identifier: Apache-2.0
"""Attacks on a front's access rules: keys, host names, pages of other origins, administration."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import ToyServer, gateway_of
from tests.hostile.rawhttp import send_raw, status_of
from zpptool.serve.front_access import FrontAccess

pytestmark = pytest.mark.timeout(60)

COMPLETIONS = "/v1/completions"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
KEY = {"authorization": "Bearer k"}


def ask(method: str, url: str, headers: dict[str, str] | None = None, **more: object) -> httpx.Response:
    return httpx.request(method, url, headers=headers, timeout=30, trust_env=False, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/readyz"])
def test_only_reading_a_probe_needs_no_key(server: ToyServer, method: str, path: str) -> None:
    with gateway_of([server], keys=["k"]) as gateway:
        assert ask(method, gateway.url + path, content=b"x" * 100_000).status_code == 401
        assert ask("GET", gateway.url + path).status_code == 200
        assert ask("HEAD", gateway.url + path).status_code == 200
    assert not server.received


@pytest.mark.parametrize(
    "path",
    ["/v1/models/", "//v1/models", "/health/../v1/models", "/v1%2Fmodels", "/%761/models", "/health%2F..%2Fmetrics"],
)
def test_no_spelling_of_a_path_avoids_the_key(server: ToyServer, path: str) -> None:
    with gateway_of([server], keys=["k"]) as gateway:
        response = send_raw(gateway.url, f"GET {path} HTTP/1.1", "host: localhost")
    assert status_of(response) == 401
    assert not server.received


def test_a_name_of_another_site_is_refused_and_addresses_and_probes_are_not(server: ToyServer) -> None:
    access = FrontAccess(hosts=("llm.example.com", "*.internal.example"))
    with gateway_of([server], access=access) as gateway:

        def status(host: str, path: str = "/v1/models") -> int:
            return status_of(send_raw(gateway.url, f"GET {path} HTTP/1.1", f"host: {host}"))

        for host in (
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "0x7f.1",
            "internal.example",
            "",
            "a b",
        ):
            assert status(host) in (400, 421), host
            assert status(host, "/pipeline/status") in (400, 421), host
        own = ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "10.1.2.3:8000", "[::1]:8000", "llm.example.com.")
        for host in (*own, "LLM.example.com:1", "a.internal.example"):
            assert status(host) == 200, host
        assert status("zpp.svc.cluster.local", "/readyz") == 200
        refused = send_raw(gateway.url, "GET /v1/models HTTP/1.1", "host: evil.example")
    assert b"--allowed-host" in refused


def test_any_host_is_allowed_where_the_operator_says_so(server: ToyServer) -> None:
    with gateway_of([server], access=FrontAccess(hosts=("*",))) as gateway:
        assert ask("GET", f"{gateway.url}/v1/models", {"host": "anything.example"}).status_code == 200


@pytest.mark.parametrize(
    "hosts", [[], ["host: localhost", "host: evil.example"], ["host: localhost", "host: localhost"]]
)
def test_a_request_without_or_with_two_hosts_is_refused(server: ToyServer, hosts: list[str]) -> None:
    with gateway_of([server]) as gateway:
        assert status_of(send_raw(gateway.url, "GET /v1/models HTTP/1.1", *hosts)) == 400
        assert status_of(send_raw(gateway.url, "GET /health HTTP/1.1", *hosts)) == 400
    assert not server.received


@pytest.mark.parametrize("path", [COMPLETIONS, "/pipeline/rollout", "/nothing", "/"])
def test_a_preflight_never_needs_a_key_and_never_reaches_an_engine(server: ToyServer, path: str) -> None:
    with gateway_of([server], keys=["k"], access=FrontAccess(origins=("http://app.example",))) as gateway:
        admitted = ask("OPTIONS", gateway.url + path, {**PREFLIGHT, "origin": "http://app.example"})
        refused = ask("OPTIONS", gateway.url + path, {**PREFLIGHT, "origin": "http://evil.example"})
        bare = ask("OPTIONS", gateway.url + path)
    assert admitted.status_code == 200
    assert admitted.headers["access-control-allow-origin"] == "http://app.example"
    assert "POST" in admitted.headers["access-control-allow-methods"]
    assert "authorization" in admitted.headers["access-control-allow-headers"]
    for answer in (refused, bare):
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not server.received


def test_without_allowed_origins_every_preflight_is_refused(server: ToyServer) -> None:
    with gateway_of([server]) as gateway:
        answer = ask("OPTIONS", gateway.url + COMPLETIONS, {**PREFLIGHT, "origin": "http://app.example"})
        read = ask("GET", f"{gateway.url}/v1/models", {"origin": "http://app.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in read.headers


def test_an_allowed_page_reads_answers_and_refusals(server: ToyServer) -> None:
    with gateway_of([server], keys=["k"], access=FrontAccess(origins=("*",))) as gateway:
        page = {"origin": "http://app.example"}
        answer = ask("POST", gateway.url + COMPLETIONS, {**page, **KEY}, json={})
        refused = ask("POST", gateway.url + COMPLETIONS, page, json={})
    assert (answer.status_code, refused.status_code) == (200, 401)
    assert answer.headers["access-control-allow-origin"] == refused.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", "file://"])
def test_a_page_of_another_site_cannot_compute(server: ToyServer, origin: str) -> None:
    with gateway_of([server]) as gateway:
        assert ask("POST", gateway.url + COMPLETIONS, {"origin": origin}, json={}).status_code == 403
        assert ask("POST", gateway.url + COMPLETIONS, {"origin": gateway.url}, json={}).status_code == 200
    assert len(server.received) == 1


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_a_form_could_send_is_refused(server: ToyServer, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    with gateway_of([server]) as gateway:
        answer = ask("POST", gateway.url + COMPLETIONS, headers, content=b'{"prompt": "x"}')
        chunked = ask("POST", gateway.url + COMPLETIONS, headers, content=iter([b"{}"]))
        file = {"content-type": "multipart/form-data; boundary=b"}
        audio = ask("POST", f"{gateway.url}/v1/audio/transcriptions", file, content=b"--b--")
    assert answer.status_code == chunked.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"
    assert audio.status_code == 200


@pytest.mark.parametrize(
    "path", ["/pipeline/rollout", "/pipeline/rebalance", "/v1/load_lora_adapter", "/reset_prefix_cache"]
)
@pytest.mark.parametrize(
    "marks",
    [
        {"origin": "http://app.example"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {"x-forwarded-for": "127.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
def test_administration_is_refused_to_pages_and_through_proxies(
    server: ToyServer, path: str, marks: dict[str, str]
) -> None:
    with gateway_of([server], access=FrontAccess(origins=("*",))) as gateway:
        answer = ask("POST", gateway.url + path, marks, json={})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "administration_refused"
    assert not server.received


def test_administration_needs_the_key_where_there_is_one_and_works_locally_without(server: ToyServer) -> None:
    with gateway_of([server], keys=["k"]) as gateway:
        assert ask("POST", f"{gateway.url}/pipeline/rollout", json={}).status_code == 401
        assert ask("POST", f"{gateway.url}/pipeline/rollout", KEY, json={}).status_code == 404  # no head runs here
        assert ask("POST", f"{gateway.url}/reset_prefix_cache", {**KEY, "via": "1.1 proxy"}).status_code == 200
    with gateway_of([server]) as gateway:
        assert ask("POST", f"{gateway.url}/pipeline/rollout", json={}).status_code == 404
        assert ask("POST", f"{gateway.url}/reset_prefix_cache").status_code == 200
