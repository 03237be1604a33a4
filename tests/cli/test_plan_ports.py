# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan-ports` as a user runs it."""

from __future__ import annotations

import os
import socket

import pytest


def test_scripts_get_every_address(zpptool) -> None:
    ran = zpptool("plan-ports", "--num-stages", "2", "--base-port", "15550", "--json")
    assert ran.code == 0
    assert not ran.err
    assert ran.json == {
        "schema_version": 1,
        "num_stages": 2,
        "base_port": 15550,
        "return_port": 15552,
        "api_port": 8000,
        "stages": [
            {"stage": 0, "host": "127.0.0.1", "bind": "tcp://127.0.0.1:15550", "connect": "tcp://127.0.0.1:15552"},
            {"stage": 1, "host": "127.0.0.1", "bind": "tcp://127.0.0.1:15552", "connect": "tcp://127.0.0.1:15550"},
        ],
        "open_ports": {"127.0.0.1": [8000, 15550, 15552]},
    }


def test_people_get_flags_to_copy_and_firewall_lines(zpptool) -> None:
    ran = zpptool("plan-ports", "--pipeline-parallel-size", "2", "--hosts", "a, b", "--api-port", "9000")
    assert ran.code == 0
    place = "--stage-idx {} --total-stages 2 --local-bind-port {} --prev-stage-{} --bind-host {} --keys keys/{}.keys"
    for line in (
        place.format(0, 15550, "addr b:15552", "a", "stage_0") + " --host a --port 9000\n",
        place.format(1, 15552, "service-addr a:15550", "b", "stage_1") + "\n",
        "open tcp 15550 on host a for host b",
        "open tcp 15552 on host b for host a",
        "open tcp 9000 on host a for its clients",
    ):
        assert line in ran.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num-stages", "3", "--hosts", "a,b"], 2, "2 hosts are given for 3 stages"),
        (["--num-stages", "3", "--hosts", "a,,b"], 5, "''"),
        (["--num-stages", "0"], 2, "at least one stage"),
        (["--num-stages", "4", "--base-port", "65532"], 5, "65536"),
        (["--num-stages", "4", "--api-port", "15551"], 5, "stage 1"),
        (["--num-stages", "4", "--api-port", "70000"], 5, "70000"),
        (["--num-stages", "2", "--hosts", "a,b", "--transport", "ipc"], 2, "one host"),
        (["--num-stages", "2", "--transport", "udp"], 2, "udp"),
        ([], 2, "--num-stages"),
    ],
)
def test_what_cannot_be_planned_is_refused(zpptool, words: list[str], code: int, message: str) -> None:
    ran = zpptool("plan-ports", *words)
    assert ran.code == code
    assert message in ran.err
    assert not ran.out


def test_privileged_ports_are_only_warned_of(zpptool) -> None:
    ran = zpptool("plan-ports", "--num-stages", "2", "--base-port", "1022")
    assert ran.code == 0
    assert "warning: only a privileged process may bind 1022" in ran.err


def test_the_check_names_the_process_in_the_way(zpptool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("plan-ports", "--num-stages", 1, "--base-port", port - 1, "--api-port", port - 1, "--check")
        shown, scripted = zpptool(*words), zpptool(*words, "--json")
    assert shown.code == scripted.code == 5
    assert f"tcp://127.0.0.1:{port} cannot be bound" in shown.out
    assert str(os.getpid()) in shown.out
    faults = [fault for fault in scripted.json["faults"] if fault["address"] == f"tcp://127.0.0.1:{port}"]
    assert faults[0]["pid"] == os.getpid()
    assert scripted.json["checked_hosts"] == ["127.0.0.1"]


def test_the_check_passes_where_all_is_free(zpptool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ran = zpptool("plan-ports", "--num-stages", 1, "--base-port", port - 1, "--api-port", port - 1, "--check")
    assert ran.code == 0
    assert "every address can be bound" in ran.out


def test_the_check_leaves_other_machines_alone(zpptool) -> None:
    ran = zpptool("plan-ports", "--num-stages", "2", "--hosts", "203.0.113.1,203.0.113.2", "--check", "--json")
    assert ran.code == 0
    assert ran.json["checked_hosts"] == []
