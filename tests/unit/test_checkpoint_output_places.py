# SPDX-License-Identifier: Apache-2.0
"""An output may be a mount point, a volume whose parent is root's, the current directory, or a directory of others."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from test_checkpoint_output_directory import killed_at, moments, stages_of, tree

from tests.strangers import OTHER_USER, as_another_user, needs_root, shared_directory
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.split import split_checkpoint, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ExitCode, ZppError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(tied=True), llama_config(tie_word_embeddings=True), shards=3)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system with the `lost+found` that mkfs makes."""
    path = tmp_path / "volume"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(path)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    (path / "lost+found").mkdir(0o700)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_root_of_a_volume(tmp_path: Path, model: Path, volume: Path) -> None:
    split_checkpoint(model, volume, 2)
    assert names(volume) == {"lost+found", "stage_0", "stage_1"}
    split_checkpoint(model, volume, 3, force=True)
    assert names(volume) == {"lost+found", "stage_0", "stage_1", "stage_2"}
    assert names(tmp_path) == {"model", "volume"}
    assert verify_split(find_target(volume, model)).valid


def test_a_join_into_the_root_of_a_volume(tmp_path: Path, model: Path, volume: Path) -> None:
    split_checkpoint(model, tmp_path / "stages", 2)
    write_join(plan_join(tmp_path / "stages"), volume)
    assert verify_split(find_target(tmp_path / "stages", volume)).valid
    assert names(tmp_path) == {"model", "stages", "volume"}


@pytest.mark.parametrize("count", [1, 2])
def test_a_volume_for_one_stage(tmp_path: Path, model: Path, volume: Path, count: int) -> None:
    """Each stage's directory is a volume of its own; it is filled, and replaced with force."""
    output = tmp_path / "out"
    (output / "stage_1").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(volume), str(output / "stage_1")], check=True)
    try:
        with pytest.raises(ZppError, match="stage_1 exists and is not a stage of a split"):
            split_checkpoint(model, output, 2, force=True)
        for _time in range(count):
            write_split(plan_split(model, 2).only(1), output, force=True)
        write_split(plan_split(model, 2).only(0), output)
        assert verify_split(find_target(output, model)).valid
        with pytest.raises(ZppError, match="stage_1 is a mount point"):
            split_checkpoint(model, output, 3, force=True)
    finally:
        subprocess.run(["umount", str(output / "stage_1")], check=True)


@needs_root
@pytest.mark.parametrize("only", [None, 0])
def test_a_volume_of_a_user_below_a_directory_of_root(only: int | None) -> None:
    with shared_directory() as shared:
        model = write_checkpoint(shared / "model")
        output = shared / "mounts" / "models"
        output.mkdir(parents=True)
        os.chown(output, OTHER_USER, OTHER_USER)
        output.parent.chmod(0o755)
        plan = plan_split(model, 2)
        wanted = plan if only is None else plan.only(only)
        assert as_another_user(lambda: len(write_split(wanted, output).paths)) == len(wanted.stages)
        assert names(output) == {stage.directory_name for stage in wanted.stages}
        assert names(output.parent) == {"models"}


def test_the_current_directory_is_kept(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    split_checkpoint(model, Path(), 2)
    assert set(os.listdir()) == {"stage_0", "stage_1"}
    split_checkpoint(model, Path(), 3, force=True)
    assert set(os.listdir()) == {"stage_0", "stage_1", "stage_2"}
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    write_join(plan_join(tmp_path / "here"), Path())
    assert set(os.listdir()) == names(model)
    assert verify_split(find_target(tmp_path / "here", Path(os.getcwd()))).valid


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("foreign", ["stage_0", "stage_1", "stage_9"])
def test_a_folder_that_is_no_stage_is_never_removed(tmp_path: Path, model: Path, foreign: str, force: bool) -> None:
    output = tmp_path / "out"
    split_checkpoint(model, output, 2)
    shutil.rmtree(output / foreign, ignore_errors=True)
    (output / foreign).mkdir()
    (output / foreign / "weeks.ckpt").write_text("of training")
    before = tree(tmp_path)
    with pytest.raises(ZppError, match=f"{foreign} exists and is not a stage") as caught:
        split_checkpoint(model, output, 2, force=force)
    assert caught.value.exit_code is ExitCode.INVALID
    if foreign != "stage_9":
        with pytest.raises(ZppError, match=f"{foreign} exists and is not a stage"):
            write_split(plan_split(model, 2).only(int(foreign[-1])), output, force=force)
    assert tree(tmp_path) == before


def test_a_stage_on_another_disk_is_not_followed(tmp_path: Path, model: Path) -> None:
    """A link in place of a stage is replaced; what it leads to is kept."""
    output = tmp_path / "out"
    split_checkpoint(model, output, 2)
    (output / "stage_1").rename(tmp_path / "elsewhere")
    (output / "stage_1").symlink_to(tmp_path / "elsewhere")
    kept = tree(tmp_path / "elsewhere")
    split_checkpoint(model, output, 2, force=True)
    assert not (output / "stage_1").is_symlink()
    assert tree(tmp_path / "elsewhere") == kept


def test_a_stage_is_not_an_output_for_stages(tmp_path: Path, model: Path) -> None:
    stage = split_checkpoint(model, tmp_path / "out", 2)[0]
    before = tree(stage)
    with pytest.raises(ZppError, match="is itself one stage"):
        split_checkpoint(model, stage, 2, force=True)
    assert tree(stage) == before


def test_a_stage_that_is_replaced_and_killed_at_any_point(tmp_path: Path, model: Path) -> None:
    old, new, output = plan_split(model, 3), plan_split(model, 2), tmp_path / "out"
    write_split(old.only(0), tmp_path / "old")
    write_split(new.only(0), tmp_path / "new")
    wholes = [tree(tmp_path / "old"), tree(tmp_path / "new")]

    def run(number: int) -> bool:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "old", output)
        return killed_at(number, lambda: write_split(new.only(0), output, force=True))[0]

    seen = 0
    for _number in moments(run, step=29):
        seen += 1
        held = stages_of(tree(output)).get("stage_0", {})
        files = {name: own for name, own in held.items() if not name.startswith(".")}
        assert "zpp-stage.json" not in files or files in (whole["stage_0"] for whole in map(stages_of, wholes))
        write_split(new.only(0), output, force=True)
        assert tree(output) == wholes[1]
    assert seen > 4


@pytest.mark.parametrize("length", [199, 230, 255])
def test_a_long_name(tmp_path: Path, model: Path, length: int) -> None:
    output = tmp_path / ("b" * length)
    split_checkpoint(model, output, 2)
    assert names(tmp_path) == {"model", output.name}
    with pytest.raises(ZppError, match="too long"):
        split_checkpoint(model, tmp_path / ("b" * 256), 2)


def test_a_deep_path(tmp_path: Path, model: Path) -> None:
    split_checkpoint(model, tmp_path / Path("d/" * 1400), 2)
    assert verify_split(find_target(tmp_path / Path("d/" * 1400), model)).valid
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil.rmtree recurses


def test_a_file_above_the_output(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZppError, match=r"file, above the output .* is not a directory"):
        split_checkpoint(model, tmp_path / "file" / "out", 2)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_fsync(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    split_checkpoint(model, tmp_path / "out", 2)
    split_checkpoint(model, tmp_path / "out", 2, force=True)
    assert verify_split(find_target(tmp_path / "out", model)).valid
