# SPDX-License-Identifier: Apache-2.0
"""Cut a checkpoint into stage directories, each of which loads on its own.

Nothing is written until the plan stands. Each stage directory then holds the full config, every small file, the stage's
own tensors under their own names, their index, and a manifest. Layers are never renumbered, tensor bytes never changed,
and the source never written to. A run that is stopped leaves the output as it was; the next one goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zpptool
from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.existing_output import check_siblings, is_kept
from zpptool.checkpoint.file_copy import Advance, can_reflink
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import INDEX_NAME, MAX_INDEX_BYTES, CheckpointIndex
from zpptool.checkpoint.manifest import MANIFEST_VERSION
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.output import (
    check_output,
    check_space,
    discard,
    disk_fault,
    ground_of,
    locked,
    resolve_output,
    settle,
    unfinished,
    whole_directory,
)
from zpptool.checkpoint.sample import read_samples, sample_digest
from zpptool.checkpoint.splitplan import SplitPlan, plan_split
from zpptool.checkpoint.stagewriter import ModelFacts, stage_directory, write_stages
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error


@dataclass(frozen=True)
class Origin:
    """Where the bytes come from, if not from the planned directory itself.

    Attributes:
        name: stands for the content, for example a hub id with its commit.
        read_samples: as in `sample`.
    """

    name: str
    read_samples: Callable[[list[TensorInfo]], list[bytes]]


@dataclass(frozen=True)
class SplitResult:
    """What a split has made.

    Attributes:
        paths: the stage directories.
        kept: the one stage that was asked for was there already, and nothing was written.
    """

    paths: list[Path]
    kept: bool


def write_split(
    plan: SplitPlan,
    output: Path,
    *,
    force: bool = False,
    way: CopyOptions | None = None,
    origin: Origin | None = None,
    advance: Advance = lambda _bytes: None,
) -> SplitResult:
    """Write the planned stage directories; all of them or, on any failure or interrupt, none.

    What a run that failed has finished is kept beside the output, and the next run of the same plan goes on from there.
    A run of one stage that the output holds already keeps it, so that a host may ask for its stage whenever it starts;
    a whole split is not written twice without `force`.

    Args:
        plan: from `plan_split`.
        output: the directory that will hold `stage_0`, `stage_1`, ...
        force: replace the stages that an earlier split left there.
        way: how the bytes travel, and whether they are hashed.
        origin: where they come from.
        advance: is told, from any thread, of the bytes that are done; their sum is `plan.nbytes`.

    Raises:
        ZppError: (INVALID) the output is taken, too small, or within the source; (FAILURE) reading or writing failed.
    """
    way = way or CopyOptions()
    source = plan.index.directory
    output = resolve_output(output, source)
    target = target_of(plan, output)
    paths = [stage_directory(plan, stage, target) for stage in plan.stages]
    try:
        with _alone(plan, output, target):
            reader = origin.read_samples if origin else read_samples
            facts = ModelFacts(sample_digest(plan.index, reader), _index_metadata(source))
            check_siblings(plan, facts, output)
            if not force and is_kept(plan, facts, target, hashed=way.hashed):
                discard(target)
                if plan.is_one_stage:
                    return SplitResult(paths, True)
                raise invalid_error(
                    f"the output {target} holds this very split already",
                    "use it as it is, or give --force to write it again",
                )
            check_output(target, force=force)
            check_space(target, _needed_bytes(plan, way, target))
            before = _fingerprint(plan.index)
            with whole_directory(target, _identity(plan, way, origin)) as place:
                write_stages(plan, facts, place, way, advance)
                if _fingerprint(plan.index) != before:
                    raise ZppError(f"the weights in {source} changed while they were read", "split again, once at rest")
    except OSError as cause:
        raise disk_fault(cause, target) from cause
    return SplitResult(paths, False)


def target_of(plan: SplitPlan, output: Path) -> Path:
    """The directory that a run makes: `output`, or in it the only stage of the plan."""
    return output / plan.stages[0].directory_name if plan.is_one_stage else output


def split_checkpoint(
    source: Path,
    output: Path,
    num_stages: int | None = None,
    ranges: Sequence[str] | None = None,
    *,
    force: bool = False,
    way: CopyOptions | None = None,
) -> list[Path]:
    """Plan and write a split, and return the stage directories; see `plan_split` and `write_split`."""
    return write_split(plan_split(source, num_stages, ranges), output, force=force, way=way).paths


@contextmanager
def _alone(plan: SplitPlan, output: Path, target: Path) -> Iterator[None]:
    """Other runs kept out of `output`, and what a killed one left there put right."""
    with locked(output):
        if not plan.is_one_stage:
            yield
            return
        made = not output.exists()
        output.mkdir(exist_ok=True)
        settle(target)
        try:
            yield
        finally:
            if made and not any(output.iterdir()):
                output.rmdir()


def _needed_bytes(plan: SplitPlan, way: CopyOptions, target: Path) -> int:
    """What a split takes of the disk: less what is shared with the source, and what an earlier run has written.

    Raises:
        ZppError: (INVALID) sharing is asked for and the file system cannot.
    """
    source = plan.index.directory
    small = sum((source / name).stat().st_size for name in plan.small_files) * len(plan.stages)
    shards = [shard for stage in plan.stages for shard in stage.shards]
    if way.mode is Mode.HARDLINK and way.read is None:
        shards = [shard for shard in shards if not shard.whole]
    elif way.mode in (Mode.AUTO, Mode.REFLINK) and way.read is None:
        shared = can_reflink(plan.index.headers[0].file, ground_of(target))
        if not shared and way.mode is Mode.REFLINK:
            raise invalid_error(
                f"files in {target.parent} cannot share blocks with those in {source}",
                "reflinks need one XFS or Btrfs file system for both; use --mode auto",
            )
        shards = [] if shared else shards
    left = unfinished(target)
    done = sum(path.stat().st_size for path in left.rglob("*.safetensors")) if left else 0
    return max(0, sum(shard.nbytes for shard in shards) + small - done)


def _index_metadata(source: Path) -> dict[str, Any] | None:
    """The `metadata` of the source's index; the index itself was read and checked by `read_index`."""
    path = source / INDEX_NAME
    if not path.exists():
        return None
    metadata = read_json(path, MAX_INDEX_BYTES, "index of a checkpoint").get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _identity(plan: SplitPlan, way: CopyOptions, origin: Origin | None) -> str:
    """A digest of all that determines what a run makes, and of the source as it lies there."""
    source = plan.index.directory
    stats = {name: _stamp(source / name) for name in plan.small_files}
    shards = [
        [stage.stage, shard.name, shard.whole, [tensor.name for tensor in shard.tensors]]
        for stage in plan.stages
        for shard in stage.shards
    ]
    named = [zpptool.__version__, MANIFEST_VERSION, plan.partition, way.mode, way.hashed, stats, shards]
    place: list[Any] = [origin.name] if origin else [str(source.resolve()), _fingerprint(plan.index)]
    return digest_bytes(json.dumps([named, place]).encode())


def _fingerprint(index: CheckpointIndex) -> list[tuple[int, int]]:
    """What changes when something writes to the source: size and time of its weight files."""
    return [_stamp(header.file) for header in index.headers]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
