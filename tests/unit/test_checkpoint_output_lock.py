# SPDX-License-Identifier: Apache-2.0
"""Runs that write one output exclude each other; runs of different stages do not, with flock and without it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.checkpoint.output_lock import Held, hold
from zpptool.checkpoint.split import split_checkpoint, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ZppError

pytestmark = pytest.mark.timeout(60)
WITHOUT = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]


def remove_flock(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Make flock fail as on a file system that does not have it."""

    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=["flock", "no flock"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "no flock":
        remove_flock(monkeypatch)
    return tmp_path / ".out[1].zpp-lock"


@pytest.mark.parametrize("second", [True, False])
def test_one_run_alone(path: Path, second: bool) -> None:
    with hold(path), pytest.raises(Held), hold(path, shared=second):
        pass
    assert not list(path.parent.iterdir())


def test_shared_runs_exclude_one_alone(path: Path) -> None:
    with hold(path, shared=True):
        with pytest.raises(Held), hold(path):
            pass
        with pytest.raises(Held), hold(path):
            pass
    with hold(path):
        pass
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("other", ["flock", "no flock"])
def test_processes_share_and_exclude(path: Path, other: str) -> None:
    """Two processes, each with flock or without it: hosts may mount one file system differently."""
    code = (
        "import sys, fcntl, errno; from pathlib import Path; from zpptool.checkpoint.output_lock import *\n"
        "def none(*_): raise OSError(errno.ENOLCK, 'none')\n"
        "if sys.argv[1] != 'flock': fcntl.flock = none\n"
        "with hold(Path(sys.argv[2]), shared=True): print('held', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, other, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with hold(path, shared=True):
            pass
        with pytest.raises(Held), hold(path):
            pass
    assert process.returncode == 0
    with hold(path):
        pass
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_killed_run_left(path: Path, shared: bool) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = path.with_name(path.name + "-0123") if shared else path
    left.write_text(f"{socket.gethostname()} {ended.pid}")
    with hold(path):
        pass
    left.write_text(f"another-host {ended.pid}")
    with pytest.raises(Held) as caught, hold(path):
        pass
    assert caught.value.marker == left


@pytest.mark.parametrize("number", WITHOUT)
def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    remove_flock(monkeypatch, number)
    model, output = write_checkpoint(tmp_path / "model"), tmp_path / "out"
    plan = plan_split(model, 2)
    split_checkpoint(model, output, 2)
    split_checkpoint(model, output, 3, force=True)
    with hold(output / ".zpp-lock", shared=True):
        write_split(plan.only(0), output / "one")
        with pytest.raises(ZppError, match="another zpptool is writing") as caught:
            write_split(plan, output, force=True)
        assert "--no-lock" in str(caught.value.hint)
        write_split(plan, output, force=True, lock=False)
    assert verify_split(find_target(output, model)).valid


def test_stages_are_written_at_once_and_not_beside_a_run_of_all(tmp_path: Path) -> None:
    model, output = write_checkpoint(tmp_path / "model"), tmp_path / "out"
    plan = plan_split(model, 3)
    seen = []

    def meanwhile(_bytes: int) -> None:
        if not seen:
            seen.append(True)
            write_split(plan.only(1), output)
            for refused in (plan.only(0), plan):
                with pytest.raises(ZppError, match="another zpptool is writing"):
                    write_split(refused, output, force=True)

    write_split(plan.only(0), output, advance=meanwhile)
    write_split(plan.only(2), output)
    assert verify_split(find_target(output, model)).valid
    assert {path.name for path in output.iterdir()} == {"stage_0", "stage_1", "stage_2"}


def test_three_hosts_fetch_their_stages_into_a_new_directory(tmp_path: Path) -> None:
    model, output = write_checkpoint(tmp_path / "model"), tmp_path / "new" / "out"
    line = [sys.executable, "-m", "zpptool", "split", str(model), "--num-stages", "3", "-o", str(output), "--stage"]
    runs = [subprocess.Popen([*line, str(k)], stdout=subprocess.DEVNULL) for k in range(3)]
    assert [run.wait(50) for run in runs] == [0, 0, 0]
    assert verify_split(find_target(output, model)).valid
    assert {path.name for path in output.iterdir()} == {"stage_0", "stage_1", "stage_2"}
