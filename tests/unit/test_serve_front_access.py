# SPDX-License-Identifier: Apache-2.0
"""The access rules that options make, and the decisions that follow from them."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from zpptool.errors import ExitCode, ZppError
from zpptool.serve.admin_guard import is_administration, refusal_of
from zpptool.serve.cross_origin import is_same_origin
from zpptool.serve.front_access import access_rules, checked_host, checked_origins


def test_the_rules_of_the_command_line() -> None:
    access = access_rules(["k"], "front.example", ["LLM.example.com"], [], ["--allowed-origins", '["*"]'])
    assert access.keys == ("k",)
    assert {"front.example", "llm.example.com"} <= set(access.hosts)
    assert access.origins == ("*",)
    own = access_rules([], "0.0.0.0", [], ["http://a.example"], ["--allowed-origins", '["*"]'])
    assert own.origins == ("http://a.example",)


@pytest.mark.parametrize("text", ["http://a", "a:8000", "a/b", "", "*.", "a b", "*a"])
def test_a_value_that_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ZppError, match="not a host name") as refused:
        checked_host(text)
    assert refused.value.exit_code is ExitCode.USAGE


def test_origins_may_be_written_in_three_ways() -> None:
    assert checked_origins(["http://A", "https://b:8443/,null", '["http://a", "http://[::1]:3000"]']) == (
        "http://a", "https://b:8443", "null", "http://[::1]:3000",
    )  # fmt: skip
    for text in ("a.example", "http://a/b", "", "[1]", "[*]"):
        with pytest.raises(ZppError, match=r"not an origin|not a JSON list"):
            checked_origins([text])


def test_a_page_of_the_front_itself_has_its_host() -> None:
    assert is_same_origin("http://127.0.0.1:8000", "127.0.0.1:8000")
    assert is_same_origin("https://LLM.example", "llm.EXAMPLE")
    assert not is_same_origin("http://127.0.0.1:8001", "127.0.0.1:8000")
    assert not is_same_origin("null", "null")
    assert not is_same_origin("", "")
    assert not is_same_origin("http://[", "127.0.0.1:8000")


@pytest.mark.parametrize(
    ("method", "path", "administers"),
    [
        ("POST", "/pipeline/rollout", True),
        ("DELETE", "/pipeline/anything", True),
        ("GET", "/pipeline/status", False),
        ("POST", "/v1/load_lora_adapter", True),
        ("POST", "/v1/completions", False),
    ],
)
def test_what_administers(method: str, path: str, administers: bool) -> None:
    assert is_administration({"method": method, "path": path}) is administers


@pytest.mark.parametrize(
    ("client", "accepted"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
     ("::ffff:10.0.0.1", False), ("", False)],
)  # fmt: skip
def test_without_keys_only_this_machine_administers(client: str, accepted: bool) -> None:
    assert (refusal_of({}, client, has_keys=False) is None) is accepted
    assert refusal_of({}, client, has_keys=True) is None
    assert refusal_of({"origin": "x"}, client, has_keys=True) is not None
