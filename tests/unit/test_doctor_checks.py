# SPDX-License-Identifier: Apache-2.0
"""Findings of each check: on real sockets, files and processes, and on given numbers where machines differ."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from stages import free_base_port

from zpptool.config.engine_kind import Engine
from zpptool.config.plan import make_plan
from zpptool.doctor import (
    check_clock,
    check_cpu,
    check_engine,
    check_keys,
    check_memory,
    check_model,
    check_network,
    checks,
    versions,
)
from zpptool.doctor.finding import Finding, Level, blocked
from zpptool.doctor.target import Target, make_target
from zpptool.errors import ZppError

GIB = 1 << 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("doctor") / "model"
    write_checkpoint(directory, llama(layers=4), llama_config(layers=4))
    return directory


def target_of_checkpoint(model: object = None, **given: object) -> Target:
    arguments = {
        "engine": Engine.TRANSFORMERS, "num_stages": None, "base_port": 15550, "api_port": 8000, "hosts": None,
        "host": None, "keys": None, **given,
    }  # fmt: skip
    return make_target(None if model is None else str(model), **arguments)  # type: ignore[arg-type]


def levels(findings: Iterator[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


def test_every_finding_that_needs_action_has_a_fix(checkpoint: Path) -> None:
    light = tuple(check for check in checks.CHECKS if check is not check_engine.check_engine_and_devices)
    for finding in checks.examine(target_of_checkpoint(checkpoint, num_stages=2), light):
        assert (finding.level is Level.OK) == (not finding.fix), finding
        assert "\n" not in finding.message + finding.fix


def test_a_check_that_fails_is_a_finding_and_hides_no_other() -> None:
    def broken(_target: Target) -> Iterator[Finding]:
        raise RuntimeError("no such file system")
        yield

    found = list(checks.examine(target_of_checkpoint(), (broken, versions.check_zeromq)))
    assert "no such file system" in found[0].message
    assert found[1].check == "pyzmq"


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("0.32.0", Level.OK),
        ("0.32.1+cpu", Level.OK),
        ("0.31.0", Level.WARNING),
        ("0.33.0", Level.WARNING),
        (None, Level.BLOCKER),
    ],
)
def test_only_the_supported_vllm_is_ok(version: str | None, level: Level) -> None:
    assert versions.vllm_finding(version).level is level


def test_of_a_release_that_was_only_read_the_doctor_says_so() -> None:
    assert "was read, but it was not run on a card" in versions.vllm_finding("0.33.1").message


def test_a_scripts_answer_or_its_failure_is_reported() -> None:
    assert check_engine.ask("import json; answer = {'gpus': []}\n" + check_engine._PRINT) == {"gpus": []}
    assert "nonsense" in str(check_engine.ask("import nonsense"))
    assert "signal 6" in str(check_engine.ask("import os; os.abort()"))


@pytest.mark.torch
@pytest.mark.timeout(200)
def test_the_engine_imports_here(checkpoint: Path) -> None:
    pytest.importorskip("transformers")
    assert not blocked(check_engine.check_engine_and_devices(target_of_checkpoint(checkpoint)))


def test_a_gpu_without_room_for_its_stage_is_a_blocker() -> None:
    gpus = [("A", 8 * GIB, 16 * GIB), ("B", 16 * GIB, 16 * GIB)]
    assert levels(check_engine.device_findings(gpus, [10 * GIB, 10 * GIB])) == [Level.BLOCKER, Level.OK]
    assert levels(check_engine.device_findings(gpus, [1, 1, 1])) == [Level.OK, Level.OK, Level.WARNING]
    assert levels(check_engine.device_findings([], [1])) == [Level.OK]


def test_a_shortage_is_reported() -> None:
    assert check_memory.memory_finding(GIB, 2 * GIB).level is Level.WARNING
    assert check_memory.memory_finding(2 * GIB, GIB).level is Level.OK
    assert check_memory.shared_memory_finding(64 << 20).level is Level.WARNING
    assert check_memory.shared_memory_finding(GIB).level is Level.OK
    assert check_memory.files_finding(1024).level is Level.WARNING
    assert check_memory.files_finding(-1).level is Level.OK
    assert check_memory.disk_finding(Path("/"), 1).level is Level.WARNING


@pytest.mark.parametrize(
    ("cores", "nodes", "stages", "threads", "bound", "level"),
    [
        (8, 1, 1, "", "", Level.OK),
        (8, 1, 2, "", "", Level.WARNING),
        (8, 1, 2, "4", "", Level.OK),
        (8, 1, 2, "5", "", Level.WARNING),
        (8, 1, 2, "", "0-3", Level.OK),
        (8, 2, 1, "8", "", Level.WARNING),
        (8, 2, 1, "", "0-3", Level.OK),
        (8, 1, 1, "all", "", Level.WARNING),
    ],
)
def test_stages_share_the_cores(cores: int, nodes: int, stages: int, threads: str, bound: str, level: Level) -> None:
    assert check_cpu.cpu_finding(cores, nodes, stages, threads, bound).level is level


def test_the_kernel_reports_its_clock() -> None:
    assert check_clock.clock_finding(check_clock.STA_UNSYNC, 16_000_000).level is Level.WARNING
    assert check_clock.clock_finding(0, 500_000).level is Level.OK
    status = check_clock.clock_status()
    assert status is None or status[1] >= 0


def test_a_port_in_use_is_a_blocker_that_names_the_process(checkpoint: Path) -> None:
    base = free_base_port(3)
    pipeline = {"num_stages": 2, "base_port": base, "api_port": base + 1}
    assert levels(check_network.check_ports(target_of_checkpoint(checkpoint, **pipeline))) == [Level.OK]
    with socket.create_server(("127.0.0.1", base)):
        (found,) = check_network.check_ports(target_of_checkpoint(checkpoint, **pipeline))
    assert found.level is Level.BLOCKER
    assert str(base) in found.message
    assert str(os.getpid()) in found.message


def test_a_peer_is_reached_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert check_network.peer_finding(1, f"tcp://127.0.0.1:{port}").level is Level.OK
    closed = check_network.peer_finding(1, f"tcp://127.0.0.1:{port}")
    assert closed.level is Level.WARNING
    assert "stage 1" in closed.fix
    assert check_network.peer_finding(1, "tcp://no-such-host.invalid:1").level is Level.BLOCKER


def test_only_preceding_stages_on_other_machines_are_probed() -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        ours = target_of_checkpoint(
            num_stages=2, hosts=["127.0.0.1", "127.0.0.2"], base_port=port - 2, host="127.0.0.1"
        )
        assert ours.here == (0,)
        (found,) = check_network.check_peers(ours)
    assert found == Finding("stage 1", Level.OK, f"tcp://127.0.0.2:{port} accepts connections")


def test_the_model_is_read_and_compared_with_the_plan(checkpoint: Path, tmp_path: Path) -> None:
    plan = make_plan(checkpoint, num_stages=2, base_port=15550, api_port=8000)
    file = tmp_path / "zpp.yaml"
    file.write_text(plan.to_yaml())
    assert levels(check_model.check_model(target_of_checkpoint(file))) == [Level.OK]
    file.write_text(plan.to_yaml().replace(str(checkpoint), str(tmp_path / "gone")))
    assert levels(check_model.check_model(target_of_checkpoint(file))) == [Level.BLOCKER]
    other = tmp_path / "other"
    write_checkpoint(other, llama(layers=5), llama_config(layers=5))
    file.write_text(plan.to_yaml().replace(str(checkpoint), str(other)))
    findings = check_model.check_model(target_of_checkpoint(file))
    found = [finding.message for finding in findings if finding.level is Level.BLOCKER]
    assert any("4 layers" in message for message in found)
    (other / "config.json").write_text("{")
    assert levels(check_model.check_model(target_of_checkpoint(other))) == [Level.BLOCKER]


def test_a_host_outside_the_plan_is_refused() -> None:
    with pytest.raises(ZppError, match="is not a host of the pipeline"):
        target_of_checkpoint(num_stages=2, hosts=["a", "b"], host="c")


def test_key_files_must_be_private(tmp_path: Path) -> None:
    assert not list(check_keys.check_keys(target_of_checkpoint()))
    assert levels(check_keys.check_keys(target_of_checkpoint(keys=tmp_path))) == [Level.BLOCKER]
    file = tmp_path / "stage_0.keys"
    assert check_keys.keys_finding(file).level is Level.BLOCKER
    file.write_text("secret")
    file.chmod(0o644)
    assert check_keys.keys_finding(file).level is Level.BLOCKER
    file.chmod(0o600)
    assert levels(check_keys.check_keys(target_of_checkpoint(keys=tmp_path))) == [Level.OK]
