# SPDX-License-Identifier: Apache-2.0
"""Copy modes: all produce the same files, and those that share blocks do not copy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.file_copy import can_reflink
from zpptool.checkpoint.header import BLOCK_BYTES, read_header
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.shards import plan_shards
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ExitCode, ZppError

MIB = 1024 * 1024
RANGES = ["0-1", "1-4"]
SHARED_MEMORY = Path("/dev/shm")


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def large(directory: Path, *, shards: int = 3) -> Path:
    """A checkpoint of 46 MiB whose last shard belongs to one stage entirely."""
    kinds = {name: ("BF16", (2 * MIB, 1)) if len(shape) == 2 else (t, shape) for name, (t, shape) in llama().items()}
    return write_checkpoint(directory, kinds, llama_config(), shards=shards)


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system in an image file that supports reflinks."""
    folder = tmp_path_factory.mktemp("xfs")
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    with image.open("wb") as stream:
        stream.truncate(512 * MIB)
    for command in (
        ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)],
        ["mount", "-o", "loop", str(image), str(mounted)],
    ):
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"an XFS file system cannot be made here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_writes_the_same_weights(tmp_path: Path, mode: Mode, hashed: bool) -> None:
    source = large(tmp_path / "model")
    split_checkpoint(source, tmp_path / "plain", ranges=RANGES, options=CopyOptions(Mode.COPY, hashed=True))
    if mode is Mode.REFLINK and not can_reflink(source / "model-00001-of-00003.safetensors", tmp_path):
        with pytest.raises(ZppError, match="cannot share blocks") as caught:
            split_checkpoint(source, tmp_path / "out", ranges=RANGES, options=CopyOptions(mode, hashed=hashed))
        assert caught.value.exit_code == ExitCode.INVALID
        return
    split_checkpoint(source, tmp_path / "out", ranges=RANGES, options=CopyOptions(mode, hashed=hashed))
    ours, plain = tree(tmp_path / "out"), tree(tmp_path / "plain")
    if not hashed:
        for stage in range(2):
            name = f"stage_{stage}/zpp-stage.json"
            assert ours.pop(name) != plain.pop(name)
            assert not load_manifest(tmp_path / f"out/stage_{stage}").hashed
    assert ours == plain
    verdict = verify_split(find_target(tmp_path / "out", source))
    assert verdict.faults == []
    assert verdict.unhashed == ([] if hashed else [0, 1])


def test_a_shard_that_is_all_of_one_stage_is_hard_linked_and_others_are_not(tmp_path: Path) -> None:
    source = large(tmp_path / "model")
    stages = split_checkpoint(source, tmp_path / "out", ranges=RANGES, options=CopyOptions(Mode.HARDLINK))
    origins = {path.stat().st_ino: path.name for path in source.glob("*.safetensors")}
    linked = {
        origins[path.stat().st_ino]
        for stage in stages
        for path in stage.glob("*.safetensors")
        if path.stat().st_ino in origins
    }
    assert linked == {"model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"}


def test_hard_links_lead_to_the_file_and_not_to_a_link_to_it(tmp_path: Path) -> None:
    source = large(tmp_path / "plain")
    cache = tmp_path / "snapshots" / "main"
    cache.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(path for path in source.iterdir() if path.is_file()):
        blob = path.rename(tmp_path / "blobs" / f"{number:064x}")
        (cache / path.name).symlink_to(blob)
    stages = split_checkpoint(cache, tmp_path / "out", ranges=RANGES, options=CopyOptions(Mode.HARDLINK))
    assert not any(path.is_symlink() for stage in stages for path in stage.rglob("*"))
    assert verify_split(find_target(tmp_path / "out", cache)).faults == []


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="there is no second file system")
def test_hard_links_across_file_systems_are_refused(tmp_path: Path) -> None:
    source = large(tmp_path / "model")
    if SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    output = SHARED_MEMORY / f"zpp-{os.getpid()}"
    with pytest.raises(ZppError, match="cannot be hard linked") as caught:
        split_checkpoint(source, output, ranges=RANGES, options=CopyOptions(Mode.HARDLINK))
    assert caught.value.exit_code == ExitCode.INVALID
    assert not output.exists()


def test_copies_share_nothing_with_the_source(tmp_path: Path) -> None:
    source = large(tmp_path / "model")
    before = tree(source)
    for stage in split_checkpoint(source, tmp_path / "out", ranges=RANGES):
        for path in stage.glob("*.safetensors"):
            with path.open("r+b") as stream:
                stream.seek(-1, 2)
                stream.write(b"?")
    assert tree(source) == before


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.REFLINK])
def test_reflinks_take_no_disk_space(xfs: Path, mode: Mode) -> None:
    source = large(xfs / f"model-{mode}", shards=2)
    os.sync()
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    free = shutil.disk_usage(xfs).free
    split_checkpoint(source, xfs / f"out-{mode}", ranges=RANGES, options=CopyOptions(mode))
    os.sync()
    assert free - shutil.disk_usage(xfs).free < size / 8
    split_checkpoint(source, xfs / f"plain-{mode}", ranges=RANGES, options=CopyOptions(Mode.COPY))
    assert tree(xfs / f"out-{mode}") == tree(xfs / f"plain-{mode}")
    assert verify_split(find_target(xfs / f"out-{mode}", source)).faults == []


# How shards are planned for sharing.


def test_a_long_run_has_the_block_alignment_of_the_source(tmp_path: Path) -> None:
    plan = plan_split(large(tmp_path / "model", shards=1), ranges=RANGES)
    for stage in plan.stages:
        for shard in stage.shards:
            longest = max(shard.runs(), key=lambda run: run.nbytes)
            assert longest.nbytes > MIB
            assert (longest.source - longest.target) % BLOCK_BYTES == 0


@pytest.mark.parametrize("limit", [1, 9 * MIB, 100 * MIB])
def test_weight_files_that_are_written_anew_are_of_moderate_size(tmp_path: Path, limit: int) -> None:
    index = read_index(large(tmp_path / "model", shards=1))
    (header,) = index.headers
    some = [tensor for tensor in header.tensors if "layers" in tensor.name]
    shards = plan_shards(some, {header.file: header}, limit)
    assert [tensor.name for shard in shards for tensor in shard.tensors] == [
        tensor.name for tensor in sorted(some, key=lambda tensor: (tensor.dtype != "F32", tensor.offset))
    ]
    assert all(shard.nbytes <= limit or len(shard.tensors) == 1 for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards)
    assert (len(shards) == 1) == (limit == 100 * MIB)


def test_a_source_file_that_is_all_of_one_stage_stays_as_it_is(tmp_path: Path) -> None:
    source = large(tmp_path / "model")
    stages = split_checkpoint(source, tmp_path / "out", ranges=RANGES)
    last = sorted(stages[1].glob("*.safetensors"))[-1]
    assert last.read_bytes() == (source / "model-00003-of-00003.safetensors").read_bytes()
    assert read_header(last).metadata["shard"] == "model-00003-of-00003.safetensors"
