# SPDX-License-Identifier: Apache-2.0
"""The addresses of `--upstream`, and the credentials in them."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from zpptool.errors import ExitCode, ZppError
from zpptool.net.addresses import without_credentials
from zpptool.serve.remote_address import RemoteAddress, UpstreamAuth, parse_address, refuse_two_credentials

SECRET = "s3cr3t"


@pytest.mark.parametrize("text", ["10.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://a?x=1", "http://a#x"])
def test_a_text_that_is_no_server_address_is_refused(text: str) -> None:
    with pytest.raises(ZppError) as refused:
        parse_address(text)
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "text",
    [
        f"ftp://me:{SECRET}@a", f"me:{SECRET}@a:8000", f"http://me:{SECRET}/x@a", f"http://me:{SECRET}@a/v1",
        f"http://me:{SECRET}@a:port", f"http://me:1{SECRET}/@a", f"http://me:x@{SECRET}@a/v1", f"http://a/{SECRET}@b",
    ],
)  # fmt: skip
def test_a_refusal_does_not_show_the_password(text: str) -> None:
    with pytest.raises(ZppError) as refused:
        parse_address(text)
    assert refused.value.exit_code == ExitCode.USAGE
    assert SECRET not in f"{refused.value.message} {refused.value.hint}"
    assert refused.value.__cause__ is None


def test_a_trailing_slash_is_removed() -> None:
    assert parse_address("https://a:8000/") == RemoteAddress("https://a:8000")
    assert parse_address("http://[::1]:8000") == RemoteAddress("http://[::1]:8000")


def test_credentials_become_a_header_and_leave_the_url() -> None:
    address = parse_address(f"http://me:{SECRET}%40%C3%A9@10.0.0.1:8000/")
    assert address.url == "http://10.0.0.1:8000"
    assert address.authorization == httpx.BasicAuth("me", f"{SECRET}@é")._auth_header
    assert SECRET not in repr(address)
    assert "Basic" not in repr(address)


def test_only_the_requests_to_an_upstream_get_its_header() -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((str(request.url), request.headers.get("authorization")))
        return httpx.Response(200)

    auth = UpstreamAuth([parse_address(f"http://me:{SECRET}@a:80"), parse_address("http://b:8000")])
    with httpx.Client(transport=httpx.MockTransport(answer), auth=auth) as client:
        own = {"authorization": "Bearer own"}
        for url in ("http://a/x", "https://a/x", "http://a:81/x", "http://b:8000/x"):
            client.get(url, headers=own)
    value = parse_address(f"http://me:{SECRET}@a").authorization
    assert [header for _, header in sent] == [value, "Bearer own", "Bearer own", "Bearer own"]
    assert SECRET not in str(sent)


def test_one_server_has_one_set_of_credentials() -> None:
    refuse_two_credentials([parse_address("http://me:x@a"), parse_address("http://you:y@b"), parse_address("http://c")])
    with pytest.raises(ZppError, match="http://a is given with different credentials") as refused:
        refuse_two_credentials([parse_address("http://me:x@a"), parse_address("http://a")])
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a:8000", "http://a:8000"), ("http://me:x@a:8000/v1", "http://***@a:8000/v1"), ("me:x@a", "***@a"),
        ("http://me:x@y@a", "http://***@a"), ("http://me:x/y@a", "http://***@a"), ("", ""),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
