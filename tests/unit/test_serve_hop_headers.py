# SPDX-License-Identifier: Apache-2.0
"""Which headers are forwarded, and what becomes of addresses in them."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from zpptool.serve.hop_headers import end_to_end, response_headers

HEAD = "http://127.0.0.1:40123"


def test_headers_of_one_connection_are_dropped_with_those_that_connection_names() -> None:
    headers = [
        (b"Connection", b"keep-alive, X-Secret"), (b"connection", b"x-other"), (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"), (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c"), (b"Proxy-Authorization", b"x"),
        (b"X-Secret", b"1"), (b"x-other", b"2"), (b"x-kept", b"3"), (b"host", b"a"),
    ]  # fmt: skip
    assert end_to_end(headers, {b"host"}) == [(b"x-kept", b"3")]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (b"http://127.0.0.1:40123/v1/completions", b"/v1/completions"),
        (b"http://127.0.0.1:40123/a?b=c#d", b"/a?b=c#d"),
        (b"http://127.0.0.1:40123", b"/"),
        (b"http://127.0.0.1:40123//elsewhere.example/", b"/elsewhere.example/"),
        (b"//127.0.0.1:40123/a", b"/a"),
        (b"/v1/responses/7", b"/v1/responses/7"),
        (b"http://elsewhere.example/a", b"http://elsewhere.example/a"),
        (b"http://127.0.0.1:port/a", b"http://127.0.0.1:port/a"),
    ],
)
def test_a_response_never_names_the_address_of_the_upstream(address: bytes, shown: bytes) -> None:
    assert response_headers([(b"Location", address)], HEAD) == [(b"Location", shown)]
    assert response_headers([(b"content-location", address)], HEAD) == [(b"content-location", shown)]


def test_streams_are_not_buffered_by_proxies_and_the_engine_admits_no_origins() -> None:
    events = (b"content-type", b"text/event-stream; charset=utf-8")
    forwarded = response_headers([events, (b"Access-Control-Allow-Origin", b"*"), (b"server", b"uvicorn")], HEAD)
    assert forwarded == [events, (b"x-accel-buffering", b"no")]
    given = [events, (b"X-Accel-Buffering", b"yes")]
    assert response_headers(given, HEAD) == given
    json = [(b"content-type", b"application/json")]
    assert response_headers(json, HEAD) == json
