# SPDX-License-Identifier: Apache-2.0
"""Planned addresses are bound for a moment: one that is in use is reported with the process that uses it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpptool.config.endpoints import plan_endpoints
from zpptool.config.port_probe import free_port, probe_ports, probed_hosts


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_taken_port_is_found_and_its_holder_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    faults = probe_ports(plan_endpoints(1, port - 1))
    assert [fault.address for fault in faults] == [f"tcp://127.0.0.1:{port}"]
    assert faults[0].pid == os.getpid()
    assert faults[0].process
    assert str(os.getpid()) in faults[0].message


def test_a_taken_api_port_is_found(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        base = free.getsockname()[1]
    faults = probe_ports(plan_endpoints(1, base - 1), api_port=listener.getsockname()[1])
    assert [fault.pid for fault in faults] == [os.getpid()]


def test_the_probe_releases_what_it_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        base = free.getsockname()[1]
    endpoints = plan_endpoints(1, base - 1)
    assert probe_ports(endpoints) == probe_ports(endpoints) == []


def test_hosts_that_are_not_this_machine_are_skipped() -> None:
    endpoints = plan_endpoints(3, 6000, ["127.0.0.1", "203.0.113.1", "no-such-host.invalid"])
    assert probed_hosts(endpoints) == ["127.0.0.1"]
    assert [fault.address for fault in probe_ports(endpoints) if "203.0.113.1" in fault.address] == []


def test_a_socket_file_is_taken_only_while_a_process_listens(tmp_path: Path) -> None:
    endpoints = plan_endpoints(1, 6000, transport="ipc", ipc_dir=tmp_path)
    path = tmp_path / "zpp-6001"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        faults = probe_ports(endpoints)
        assert [fault.pid for fault in faults] == [os.getpid()]
    assert path.exists()
    assert probe_ports(endpoints) == []


def test_a_free_port_can_be_bound() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port
