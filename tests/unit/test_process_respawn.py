# SPDX-License-Identifier: Apache-2.0
"""The spec that a process saves for its restart: it is used, and nothing but a planned change can alter it."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import msgspec
import pytest

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError
from zpptool.process.environment import NEXT_SPEC_VARIABLE
from zpptool.process.group import ProcessGroup
from zpptool.process.respawn import common_partition, leave_spec, next_argv, next_spec
from zpptool.supervisor.restarter import Restarter

SPEC = StageSpec(
    engine=Engine.TRANSFORMERS, model="m", partition=((0, 2), (2, 4)), stage=1, bind="tcp://127.0.0.1:2",
    connect="tcp://127.0.0.1:1",
)  # fmt: skip


def changed(**fields: object) -> StageSpec:
    return msgspec.structs.replace(SPEC, **fields)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(NEXT_SPEC_VARIABLE, str(tmp_path / "stage-1.spec"))
    return tmp_path / "stage-1.spec"


@pytest.mark.parametrize("fields", [{}, {"connect": "tcp://127.0.0.2:1"}, {"partition": ((0, 1), (1, 4))}], ids=str)
def test_the_saved_spec_is_used_for_the_restart(path: Path, fields: dict[str, object]) -> None:
    assert next_spec(path, SPEC) == SPEC
    leave_spec(SPEC, **fields)
    assert next_spec(path, SPEC) == changed(**fields)
    argv = ["python", "worker", SPEC.to_json()]
    assert list(next_argv(path, argv)) == ["python", "worker", changed(**fields).to_json()]
    assert [one.name for one in path.parent.iterdir()] == ["stage-1.spec"]


def test_one_change_keeps_the_one_before(path: Path) -> None:
    leave_spec(SPEC, connect="tcp://127.0.0.2:1")
    leave_spec(SPEC, partition=((0, 3), (3, 4)))
    assert next_spec(path, SPEC) == changed(connect="tcp://127.0.0.2:1", partition=((0, 3), (3, 4)))


@pytest.mark.parametrize(
    "fields", [{"stage": 0}, {"model": "other"}, {"engine_args": ("--x",)}, {"bind": "ipc:///x"}], ids=str
)
def test_no_other_field_can_be_altered(path: Path, fields: dict[str, object]) -> None:
    path.write_text(changed(**fields).to_json())
    with pytest.raises(ZppError, match="another stage's"):
        next_spec(path, SPEC)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b"[" * 5000])
def test_a_file_that_is_no_spec_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ZppError, match="cannot be read"):
        next_spec(path, SPEC)


def test_nothing_is_saved_where_no_parent_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NEXT_SPEC_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    leave_spec(SPEC, connect="tcp://127.0.0.2:1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
def test_a_process_that_leaves_is_restarted_with_the_spec_it_has_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `run-stage` does it: the command line of the restart has the other spec."""
    script = f"import sys; print(sys.argv[-1]); sys.exit({int(ExitCode.AGAIN)})"
    caplog.set_level(logging.INFO, "zpptool")
    argv = [sys.executable, "-uc", script, SPEC.to_json()]
    log = tmp_path / "log"
    (tmp_path / "stage-1.spec").write_text(changed(connect="tcp://127.0.0.2:1").to_json())
    with ProcessGroup() as group:
        group.start("stage 1", argv, {}, log)
        restarter = Restarter(group, tmp_path)
        end = time.monotonic() + 30
        while log.read_text().count("\n") < 3:
            assert not restarter.poll()
            assert time.monotonic() < end
            time.sleep(0.02)
    first, *others = log.read_text().splitlines()
    assert first == SPEC.to_json()
    assert set(others) == {changed(connect="tcp://127.0.0.2:1").to_json()}
    assert {(record.levelname, record.message) for record in caplog.records} == {
        ("INFO", "stage 1 has left, as it was asked to; it is started again")
    }


def stages(*partitions: tuple[tuple[int, int], ...]) -> list[StageSpec]:
    return [changed(stage=stage, partition=partition) for stage, partition in enumerate(partitions)]


def test_the_common_partition_has_the_layers_of_each_stage() -> None:
    old, new = ((0, 2), (2, 4), (4, 6)), ((0, 2), (2, 3), (3, 6))
    assert common_partition(stages(old, old, old)) == old
    assert common_partition(stages(old, new, new)) == new  # of stage 0 nothing has changed
    assert common_partition(stages(old, new, old)) is None
    assert common_partition(stages(old, old)) is None
    assert common_partition([]) is None
