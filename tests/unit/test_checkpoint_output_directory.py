# SPDX-License-Identifier: Apache-2.0
"""A killed split: the output holds all of it or what it held before, and the next run completes it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import BinaryIO

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.file_copy import Advance
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.shards import Run
from zpptool.checkpoint.split import write_split
from zpptool.checkpoint.splitplan import SplitPlan, plan_split
from zpptool.checkpoint.streaming import CopyOptions, read_local, write_all
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ZppError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(tied=True), llama_config(tie_word_embeddings=True), shards=3)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file's content, without the hidden files of an unfinished run."""
    files = {p.relative_to(directory): p for p in sorted(directory.rglob("*")) if p.is_file()}
    return {str(name): p.read_bytes() for name, p in files.items() if not name.parts[0].startswith(".")}


def stages_of(files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """The files of each stage."""
    stages: dict[str, dict[str, bytes]] = {}
    for name, own in files.items():
        stage, _slash, rest = name.partition("/")
        if rest:
            stages.setdefault(stage, {})[rest] = own
    return stages


def killed_at(number: int, work: Callable[[], object]) -> tuple[bool, int]:
    """Run `work` in a child process that is killed at its `number`th file system operation.

    Returns:
        whether it was killed, and the number of file system operations.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        touched = 0

        def kill_in_time(event: str, _arguments: tuple) -> None:
            nonlocal touched
            if event.startswith(("os.", "open", "shutil.", "fcntl.")) and event != "os.kill":
                touched += 1
                if touched == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(kill_in_time)
            work()
            os.write(writing, str(touched).encode())
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(writing)
    _pid, status = os.waitpid(child, 0)
    with open(reading, "rb") as stream:
        count = stream.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status), int(count or number)


def moments(work: Callable[[int], bool], step: int) -> Iterator[int]:
    """Yield every `step`th operation at which `work` can be killed."""
    number = 1
    while work(number):
        yield number
        number += step


@pytest.mark.parametrize("before", ["nothing", "another split"])
def test_a_split_killed_at_any_point_leaves_no_mixture(tmp_path: Path, model: Path, before: str) -> None:
    plan, output, force = plan_split(model, 2), tmp_path / "out", before != "nothing"
    write_split(plan, tmp_path / "reference")
    reference, source = tree(tmp_path / "reference"), tree(model)
    other: dict[str, bytes] = {}
    if force:
        write_split(plan_split(model, 3), tmp_path / "old")
        (tmp_path / "old" / "mine").write_text("dear")
        other = tree(tmp_path / "old")
        reference["mine"] = b"dear"

    def run(number: int) -> bool:
        shutil.rmtree(output, ignore_errors=True)
        if force:
            shutil.copytree(tmp_path / "old", output)
        return killed_at(number, lambda: write_split(plan, output, force=force))[0]

    seen = 0
    for _number in moments(run, step=9 if force else 7):
        seen += 1
        held = tree(output)
        stages = stages_of(held)
        assert not stages or any(stages.items() <= stages_of(whole).items() for whole in (reference, other))
        assert force or held in ({}, reference)
        if held == reference and not force:
            with pytest.raises(ZppError, match="already holds this split"):
                write_split(plan, output)
        else:
            write_split(plan, output, force=force)
        assert tree(output) == reference
        assert {path.name for path in tmp_path.iterdir()} - {"old"} == {"model", "reference", "out"}
    assert seen > 10
    assert tree(model) == source


def test_one_stage_killed_at_any_point_preserves_the_others(tmp_path: Path, model: Path) -> None:
    whole, output = plan_split(model, 2), tmp_path / "out"
    write_split(whole.only(0), output)
    first = tree(output)
    write_split(whole.only(1), output)
    both = tree(output)
    shutil.rmtree(output / "stage_1")
    seen = 0
    for _number in moments(lambda number: killed_at(number, lambda: write_split(whole.only(1), output))[0], step=7):
        seen += 1
        assert {k: v for k, v in tree(output).items() if k.startswith("stage_")} in (first, both)
        write_split(whole.only(1), output)
        assert tree(output) == both
        assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
        shutil.rmtree(output / "stage_1")
    assert seen > 5


def test_a_split_killed_repeatedly_completes(tmp_path: Path) -> None:
    plan = plan_split(write_checkpoint(tmp_path / "model", llama(12), llama_config(12), shards=12), 4)
    killed, touched = killed_at(10**9, lambda: write_split(plan, tmp_path / "reference"))
    assert not killed
    runs = 0
    while killed_at(int(touched * 0.8), lambda: write_split(plan, tmp_path / "out"))[0]:
        runs += 1
        assert runs < 40, "no run goes on where the one before was killed"
    assert runs > 0
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def large(directory: Path) -> SplitPlan:
    kinds = {name: ("BF16", (64, 8 * 1024)) if len(shape) == 2 else (t, shape) for name, (t, shape) in llama(6).items()}
    return plan_split(write_checkpoint(directory, kinds, llama_config(6), shards=4), 3)


def inodes(directory: Path) -> set[int]:
    return {path.stat().st_ino for path in directory.rglob("*.safetensors")}


class Lost(Exception):
    """Any exception that stops a run."""


def stop_after(share: float, plan: SplitPlan) -> Callable[[int], None]:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if done > share * plan.nbytes:
            raise Lost

    return advance


def test_finished_files_are_reused(tmp_path: Path) -> None:
    plan = large(tmp_path / "model")
    write_split(plan, tmp_path / "reference")
    with pytest.raises(Lost):
        write_split(plan, tmp_path / "out", advance=stop_after(0.7, plan))
    assert not (tmp_path / "out").exists()
    finished = {path.name for path in (tmp_path / ".out.zpp-work").glob("*.receipt")}
    assert finished
    before = inodes(tmp_path / ".out.zpp-partial")
    done: list[int] = []
    write_split(plan, tmp_path / "out", advance=done.append)
    assert sum(done) == plan.nbytes
    assert len(before & inodes(tmp_path / "out")) >= len(finished)
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "reference", "out"}


@pytest.mark.parametrize("change", ["source", "partition", "finished file", "options"])
def test_finished_files_are_not_reused_for_another_result(tmp_path: Path, change: str) -> None:
    plan = large(tmp_path / "model")
    with pytest.raises(Lost):
        write_split(plan, tmp_path / "out", advance=stop_after(0.7, plan))
    options = CopyOptions()
    if change == "source":
        file = plan.index.headers[0].file
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        plan = plan_split(tmp_path / "model", 3)
    elif change == "partition":
        plan = plan_split(tmp_path / "model", ranges=["0-1", "1-2", "2-6"])
    elif change == "options":
        options = CopyOptions(Mode.COPY, hashed=False)
    else:
        for file in (tmp_path / ".out.zpp-partial").rglob("*.safetensors"):
            with file.open("r+b") as stream:
                stream.seek(-1, 2)
                stream.write(b"?")
    write_split(plan, tmp_path / "reference", options=options)
    write_split(plan, tmp_path / "out", options=options)
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_a_read_error_preserves_finished_files(tmp_path: Path) -> None:
    plan = large(tmp_path / "model")
    bad = plan.index.headers[-1].file

    def fetch(file: Path, runs: Sequence[Run], target: BinaryIO, _log: Path, _stop: Event, _done: Advance) -> None:
        if file == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        for run in runs:
            target.seek(run.target)
            for chunk in read_local(file, run.source, run.nbytes):
                write_all(target, chunk)

    with pytest.raises(ZppError, match="Input/output error") as caught:
        write_split(plan, tmp_path / "out", options=CopyOptions(fetch=fetch))
    assert "run the same command again to resume" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    write_split(plan, tmp_path / "out")
    assert verify_split(find_target(tmp_path / "out", tmp_path / "model")).valid


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_during_the_split(tmp_path: Path, small_disk: Path) -> None:
    plan = large(tmp_path / "model")
    filler, done = small_disk / "filler", 0

    def fill(more: int) -> None:
        nonlocal done
        done += more
        if done > plan.nbytes / 2 and not filler.exists():
            free = shutil.disk_usage(small_disk).free
            with filler.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, free)

    with pytest.raises(ZppError, match="No space left"):
        write_split(plan, small_disk / "out", advance=fill)
    assert not (small_disk / "out").exists()
    filler.unlink()
    write_split(plan, small_disk / "out")
    write_split(plan, tmp_path / "reference")
    assert tree(small_disk / "out") == tree(tmp_path / "reference")
    assert {path.name for path in small_disk.iterdir()} == {"out"}


def test_a_split_killed_at_random_times_resumes(zpptool, tmp_path: Path) -> None:
    plan = large(tmp_path / "model")
    command = ["split", str(tmp_path / "model"), "--num-stages", "3", "-o", str(tmp_path / "out"), "--quiet"]
    for delay_ms in (150, 250, 300, 350, 400, 450):
        with subprocess.Popen([sys.executable, "-m", "zpptool", *command], stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(delay_ms / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
        if (tmp_path / "out").exists():
            assert verify_split(find_target(tmp_path / "out", tmp_path / "model")).valid
    last = zpptool(*command)
    assert last.code == 0 or "already holds this split" in last.err, last.err
    write_split(plan, tmp_path / "reference")
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "reference"}
