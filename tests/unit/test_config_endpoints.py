# SPDX-License-Identifier: Apache-2.0
"""Planned addresses: the ring closes, and no two addresses of a machine are the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.endpoints import (
    DEFAULT_API_PORT,
    StageEndpoints,
    default_ipc_dir,
    firewall_rules,
    open_ports,
    plan_endpoints,
    stage_flags,
)
from zpptool.errors import ExitCode, ZppError
from zpptool.socket_directories import LONGEST_PARENT, LONGEST_SOCKET_PATH


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose path is short; pytest's own may not be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def refusal(*args: object, **options: object) -> ZppError:
    with pytest.raises(ZppError) as refused:
        plan_endpoints(*args, **options)  # type: ignore[arg-type]
    return refused.value


def test_stages_of_one_host_get_a_port_each_and_the_last_the_return_port() -> None:
    assert plan_endpoints(4) == (
        StageEndpoints(0, "127.0.0.1", "tcp://127.0.0.1:15550", "tcp://127.0.0.1:15554"),
        StageEndpoints(1, "127.0.0.1", "tcp://127.0.0.1:15551", "tcp://127.0.0.1:15550"),
        StageEndpoints(2, "127.0.0.1", "tcp://127.0.0.1:15552", "tcp://127.0.0.1:15551"),
        StageEndpoints(3, "127.0.0.1", "tcp://127.0.0.1:15554", "tcp://127.0.0.1:15552"),
    )


def test_a_stage_alone_on_its_host_binds_the_base_port() -> None:
    binds = [item.bind for item in plan_endpoints(3, 15550, ["a", "b", "c"])]
    assert binds == ["tcp://a:15550", "tcp://b:15550", "tcp://c:15553"]


def test_only_the_stages_that_share_a_host_are_counted_apart() -> None:
    binds = [item.bind for item in plan_endpoints(4, 6000, ["a", "b", "A", "c"])]
    assert binds == ["tcp://a:6000", "tcp://b:6000", "tcp://A:6002", "tcp://c:6004"]


def test_localhost_and_the_loopback_address_are_one_machine() -> None:
    binds = [item.bind for item in plan_endpoints(3, 6000, ["localhost", "127.0.0.1", "b"])]
    assert binds == ["tcp://localhost:6000", "tcp://127.0.0.1:6001", "tcp://b:6003"]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "10.0.0.1", "::1"]), min_size=1, max_size=12), st.integers(1, 65535 - 12)
)
def test_the_ring_closes_and_no_address_is_planned_twice(hosts: list[str], base: int) -> None:
    endpoints = plan_endpoints(len(hosts), base, hosts)
    binds = [item.bind for item in endpoints]
    assert len(set(binds)) == len(binds)
    assert [item.connect for item in endpoints] == [binds[-1], *binds[:-1]]
    assert binds[-1].endswith(f":{base + len(hosts)}")
    assert [item.host for item in endpoints] == hosts


def test_an_ipv6_address_is_put_in_brackets() -> None:
    assert plan_endpoints(1, 6000, ["::1"])[0].bind == "tcp://[::1]:6001"


def test_ipc_numbers_its_sockets_as_the_ports_would_be(tmp_path: Path) -> None:
    endpoints = plan_endpoints(2, 6000, transport="ipc", ipc_dir=tmp_path)
    assert [item.bind for item in endpoints] == [f"ipc://{tmp_path}/zpp-6000", f"ipc://{tmp_path}/zpp-6002"]
    assert endpoints[0].connect == endpoints[1].bind
    assert open_ports(endpoints, 8000) == {"127.0.0.1": [8000]}
    assert "--bind" in stage_flags(endpoints[0], 2, 8000)


def test_ipc_sockets_are_in_a_directory_of_the_users_own(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, own = short_tmp / "run", f"zpptool-{os.getuid()}"
    runtime.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert default_ipc_dir() == runtime / own
    for absent in ("", str(short_tmp / "absent"), "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", absent)
        assert default_ipc_dir() == short_tmp / own


def test_ipc_sockets_fit_into_an_address_wherever_the_temp_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for bound in plan_endpoints(2, 65533, transport="ipc"):
        assert bound.bind.startswith("ipc:///tmp/")
        assert len(bound.bind.removeprefix("ipc://")) <= LONGEST_SOCKET_PATH
    monkeypatch.setattr("zpptool.socket_directories.SHORT_PARENT", tmp_path / "absent")
    assert "--ipc-dir" in (refusal(2, 6000, None, "ipc").hint or "")


def test_the_longest_parent_leaves_room_for_every_socket() -> None:
    in_run = ("head.status", "head.change", "zpp-65535")
    names = ("zpptool-4294967295/zpp-65535", *(f"zpp-12345678/{name}" for name in in_run))
    assert LONGEST_PARENT + 1 + max(map(len, names)) <= LONGEST_SOCKET_PATH


@pytest.mark.parametrize(("stages", "base"), [(4, 65532), (1, 65535), (4, 0), (4, -5), (70000, 1)])
def test_a_port_out_of_range_is_refused(stages: int, base: int) -> None:
    fault = refusal(stages, base)
    assert fault.exit_code is ExitCode.ADDRESS
    assert f"{base + stages}" in fault.message


def test_the_highest_ports_are_allowed() -> None:
    assert plan_endpoints(4, 65531)[-1].bind == "tcp://127.0.0.1:65535"


def test_hosts_must_be_one_or_one_a_stage() -> None:
    fault = refusal(3, 6000, ["a", "b"])
    assert fault.exit_code is ExitCode.USAGE
    assert "2 hosts are given for 3 stages" in fault.message


@pytest.mark.parametrize("host", ["", "http://a", "a:6000", "a b", "-a", "0.0.0.0", "*", "::"])
def test_a_host_that_no_stage_can_connect_to_is_refused(host: str) -> None:
    fault = refusal(2, 6000, [host])
    assert fault.exit_code is ExitCode.ADDRESS
    assert repr(host) in fault.message


def test_ipc_refuses_several_hosts_and_a_path_too_long_for_a_socket() -> None:
    assert refusal(2, 6000, ["a", "b"], "ipc").exit_code is ExitCode.USAGE
    assert "too long" in refusal(2, 6000, None, "ipc", Path("/tmp/" + "x" * 120)).message


def test_a_pipeline_has_a_stage() -> None:
    assert refusal(0).exit_code is ExitCode.USAGE


def test_ports_to_open_are_listed_by_host_with_the_api() -> None:
    assert open_ports(plan_endpoints(3, 6000, ["a", "a", "b"]), 8000) == {"a": [6000, 6001, 8000], "b": [6003]}


def test_the_api_port_must_be_free_on_its_own_host_only() -> None:
    endpoints = plan_endpoints(2, 6000, ["a", "b"])
    assert open_ports(endpoints, 6002) == {"a": [6000, 6002], "b": [6002]}
    for taken, text in ((6000, "stage 0 binds on host a"), (0, "API port 0"), (65536, "API port 65536")):
        with pytest.raises(ZppError, match=text) as refused:
            open_ports(endpoints, taken)
        assert refused.value.exit_code is ExitCode.ADDRESS


def test_a_firewall_opens_only_what_leaves_a_host() -> None:
    assert firewall_rules(plan_endpoints(4), DEFAULT_API_PORT) == []
    text = [str(rule) for rule in firewall_rules(plan_endpoints(3, 6000, ["a", "a", "b"]), 8000)]
    assert text == [
        "open tcp 6001 on host a for host b",
        "open tcp 6003 on host b for host a",
        "open tcp 8000 on host a for its clients",
    ]


def test_the_flags_of_a_stage_name_its_own_port_and_its_one_neighbour() -> None:
    endpoints = plan_endpoints(4, 15550, ["a", "b", "c", "d"])
    flags = [" ".join(stage_flags(item, 4, 8000)) for item in endpoints]
    place = "--stage-idx {} --total-stages 4 --local-bind-port {} --prev-stage-{} --bind-host {} --keys keys/{}.keys"
    assert flags[0] == place.format(0, 15550, "addr d:15554", "a", "stage_0") + " --host a --port 8000"
    assert flags[1] == place.format(1, 15550, "service-addr a:15550", "b", "stage_1")
    assert flags[3] == place.format(3, 15554, "service-addr c:15550", "d", "stage_3")


def test_on_one_host_nothing_listens_beyond_loopback() -> None:
    endpoints = plan_endpoints(2)
    assert " ".join(stage_flags(endpoints[0], 2, 8000)) == (
        "--stage-idx 0 --total-stages 2 --local-bind-port 15550 --prev-stage-addr 127.0.0.1:15552 --port 8000"
    )
    assert " ".join(stage_flags(endpoints[1], 2, 8000)) == (
        "--stage-idx 1 --total-stages 2 --local-bind-port 15552 --prev-stage-service-addr 127.0.0.1:15550"
    )
