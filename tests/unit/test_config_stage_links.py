# SPDX-License-Identifier: Apache-2.0
"""The addresses of a stage's links: as planned unless given, and refused where they are given twice or not valid."""

from __future__ import annotations

from typing import Any

import pytest

from zpptool.config.stage_links import LinkAddresses, head_endpoint, host_port, refuse_api_port, resolve_links
from zpptool.errors import ExitCode, ZppError


def refusal(code: ExitCode, function: Any, *args: Any) -> ZppError:
    with pytest.raises(ZppError) as refused:
        function(*args)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value


def test_links_are_those_of_the_plan() -> None:
    assert resolve_links(0, 3, LinkAddresses()) == ("tcp://127.0.0.1:15550", "tcp://127.0.0.1:15553")
    assert resolve_links(1, 3, LinkAddresses(base_port=9000)) == ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9000")
    assert resolve_links(2, 3, LinkAddresses(hosts=("a", "b", "c"))) == ("tcp://c:15553", "tcp://b:15550")
    assert resolve_links(0, 1, LinkAddresses()) == ("tcp://127.0.0.1:15551", "tcp://127.0.0.1:15551")


def test_given_addresses_take_precedence_over_planned_ones() -> None:
    links = resolve_links(1, 3, LinkAddresses(bind_port=7000, previous="10.0.0.1:7001"))
    assert links == ("tcp://127.0.0.1:7000", "tcp://10.0.0.1:7001")
    assert resolve_links(1, 3, LinkAddresses(bind_host="0.0.0.0"))[0] == "tcp://0.0.0.0:15551"
    assert resolve_links(1, 3, LinkAddresses(bind_host="::1"))[0] == "tcp://[::1]:15551"
    assert resolve_links(1, 3, LinkAddresses(bind_host="[::1]"))[0] == "tcp://[::1]:15551"
    whole = resolve_links(1, 3, LinkAddresses(bind="ipc:///run/a", connect="ipc:///run/b"))
    assert whole == ("ipc:///run/a", "ipc:///run/b")


def test_addresses_by_the_former_flags_make_one_ring() -> None:
    """Its example gives every stage but the last the same port: not possible on one host, but on hosts of their own."""
    binds = [
        resolve_links(stage, 4, LinkAddresses(bind_port=15550 + 4 * (stage == 3), bind_host=f"10.0.0.{stage}"))[0]
        for stage in range(4)
    ]
    stages_before = [f"10.0.0.{stage}:15550" for stage in range(3)]
    connects = [
        resolve_links(stage, 4, LinkAddresses(previous=before, bind_port=15550))[1]
        for stage, before in enumerate(["10.0.0.3:15554", *stages_before])
    ]
    assert connects == [binds[-1], *binds[:-1]]
    same = LinkAddresses(bind_port=15550, previous="127.0.0.1:15550")
    fault = refusal(ExitCode.ADDRESS, resolve_links, 1, 4, same)
    assert "stage 1 is to bind tcp://127.0.0.1:15550 and to connect to the same address" in fault.message
    assert "plan-ports" in (fault.hint or "")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"bind_port": 0}, ExitCode.ADDRESS),
        ({"bind_port": 65536}, ExitCode.ADDRESS),
        ({"bind_port": -1}, ExitCode.ADDRESS),
        ({"previous": "10.0.0.1"}, ExitCode.ADDRESS),
        ({"base_port": 65534}, ExitCode.ADDRESS),
        ({"hosts": ("a", "b")}, ExitCode.USAGE),
        ({"bind": "tcp://127.0.0.1:1", "bind_port": 2}, ExitCode.USAGE),
        ({"bind": "tcp://127.0.0.1:1", "bind_host": "10.0.0.1"}, ExitCode.USAGE),
        ({"connect": "tcp://127.0.0.1:1", "previous": "127.0.0.1:2"}, ExitCode.USAGE),
        ({"previous": "127.0.0.1:1", "last": "127.0.0.1:1"}, ExitCode.USAGE),
        ({"last": "127.0.0.1:1"}, ExitCode.USAGE),
    ],
)
def test_addresses_that_are_not_valid_are_refused(given: dict[str, Any], code: ExitCode) -> None:
    refusal(code, resolve_links, 1, 3, LinkAddresses(**given))


PLANNED = ("tcp://127.0.0.1:6000", "tcp://127.0.0.1:6003")


@pytest.mark.parametrize(
    ("links", "port", "message"),
    [
        (PLANNED, 6000, "stage 0 binds"),
        (PLANNED, 6001, "stage 1 binds"),
        (PLANNED, 6003, "stage 2 binds"),
        (("tcp://0.0.0.0:7000", "tcp://127.0.0.1:7003"), 7003, "stage 2 binds"),
        (("tcp://10.0.0.1:7000", "tcp://10.0.0.1:7003"), 7003, "stage 2 binds"),
        (("ipc:///x/a", "ipc:///x/b"), 0, "API port 0"),
    ],
)
def test_an_api_port_that_a_link_of_its_machine_uses_is_refused(
    links: tuple[str, str], port: int, message: str
) -> None:
    with pytest.raises(ZppError, match=message) as refused:
        refuse_api_port(*links, 3, port, LinkAddresses(base_port=6000))
    assert refused.value.exit_code is ExitCode.ADDRESS


@pytest.mark.parametrize(
    ("links", "port"),
    [
        (PLANNED, 6002),
        (("tcp://10.0.0.1:7000", "tcp://10.0.0.2:7003"), 7003),
        (("tcp://127.0.0.1:7000", "tcp://10.0.0.2:7003"), 6001),
        (("ipc:///x/a", "ipc:///x/b"), 6000),
    ],
)
def test_any_other_api_port_is_taken(links: tuple[str, str], port: int) -> None:
    refuse_api_port(*links, 3, port, LinkAddresses(base_port=6000))


@pytest.mark.parametrize("text", ["10.0.0.2:15550", " tcp://10.0.0.2:15550 ", "tcp://10.0.0.2:15550"])
def test_an_address_may_name_its_transport(text: str) -> None:
    assert host_port(text) == "10.0.0.2:15550"


def test_an_ipv6_address_is_in_brackets() -> None:
    assert host_port("[fe80::1]:15550") == "[fe80::1]:15550"
    refusal(ExitCode.ADDRESS, host_port, "fe80::1:15550")


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":15550", "host:0", "host:65536", "host:port", "a b:1", "udp://a:1", "a/b:1", "a:1/"]
)
def test_anything_else_is_not_an_address(text: str) -> None:
    assert repr(text) in refusal(ExitCode.ADDRESS, host_port, text).message


def test_stage_0_may_be_given_the_last_stage_under_either_name() -> None:
    for given in (LinkAddresses(last="10.0.0.9:1"), LinkAddresses(previous="10.0.0.9:1")):
        assert resolve_links(0, 3, given)[1] == "tcp://10.0.0.9:1"


def test_the_head_of_a_script_binds_behind_the_return_port() -> None:
    assert head_endpoint("tcp://127.0.0.1:15553") == "tcp://127.0.0.1:15554"
    assert head_endpoint("tcp://127.0.0.1:15553", "10.0.0.1:7") == "tcp://10.0.0.1:7"
    for link in ("ipc:///run/x", "tcp://127.0.0.1:65535", "tcp://127.0.0.1"):
        assert "Give --head-addr" in (refusal(ExitCode.ADDRESS, head_endpoint, link).hint or "")
