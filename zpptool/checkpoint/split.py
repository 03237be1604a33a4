# SPDX-License-Identifier: Apache-2.0
"""Split a checkpoint into stage directories, each of which can be loaded on its own.

Nothing is written before the plan is complete. Each stage directory then holds the full config, every small file, the
stage's tensors under their original names, their index, and a manifest. Layers are never renumbered, tensor bytes never
changed, and the source never written to. An interrupted run leaves the output as it was, and the next run resumes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zpptool
from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.existing_output import check_siblings, holds_split
from zpptool.checkpoint.file_copy import Advance, can_reflink
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import INDEX_NAME, MAX_INDEX_BYTES, CheckpointIndex
from zpptool.checkpoint.manifest import MANIFEST_VERSION
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.output_checks import check_space, nearest_existing, replaced_entries, resolve_output
from zpptool.checkpoint.output_directory import discard, disk_fault, locked, unfinished, whole_directory
from zpptool.checkpoint.sample import read_samples, sample_digest
from zpptool.checkpoint.splitplan import SplitPlan, plan_split
from zpptool.checkpoint.stagewriter import ModelFacts, stage_directory, write_stages
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error


@dataclass(frozen=True)
class Origin:
    """The origin of the tensor bytes if it has a name of its own, beyond the planned directory.

    Attributes:
        name: identifies the content, for example a Hub id with its commit. Manifests hold it.
        read_samples: reads sampled bytes; see `sample`.
    """

    name: str
    read_samples: Callable[[list[TensorInfo]], list[bytes]]


@dataclass(frozen=True)
class SplitResult:
    """The outcome of a split.

    Attributes:
        paths: the stage directories.
        unchanged: whether the output already held the requested stage, so that nothing was written.
    """

    paths: list[Path]
    unchanged: bool


def write_split(
    plan: SplitPlan,
    output: Path,
    *,
    force: bool = False,
    options: CopyOptions | None = None,
    origin: Origin | None = None,
    advance: Advance = lambda _bytes: None,
    lock: bool = True,
) -> SplitResult:
    """Write the planned stage directories: all of them or, on any failure or interrupt, none.

    A failed run leaves its finished files beside the output, and the next run of the same plan resumes from them. If a
    single stage is requested and the output already holds it, nothing is written, so that a host can request its stage
    at every start. A whole split is not written again without `force`.

    Args:
        plan: from `plan_split`.
        output: the directory that will hold `stage_0`, `stage_1`, ...
        force: replace the stages of an earlier split in the output.
        options: how the bytes are copied, and whether they are hashed.
        origin: where the bytes come from; None for the planned directory.
        advance: called from any thread with the number of bytes just written; their sum is `plan.nbytes`.
        lock: whether to lock the output against other runs.

    Raises:
        ZppError: (INVALID) the output exists, its disk is too full, or it is inside the source; (FAILURE) reading or
            writing failed.
    """
    options = options or CopyOptions()
    source = plan.index.directory
    output = resolve_output(output, source)
    target = target_of(plan, output)
    paths = [stage_directory(plan, stage, target) for stage in plan.stages]
    try:
        with locked(target, output=output if plan.is_one_stage else None, lock=lock) as site:
            reader = origin.read_samples if origin else read_samples
            facts = ModelFacts(
                sample_digest(plan.index, reader), _index_metadata(source), origin.name if origin else ""
            )
            check_siblings(plan, facts, output)
            if not force and holds_split(plan, facts, target, hashed=options.hashed):
                discard(site)
                if plan.is_one_stage:
                    return SplitResult(paths, True)
                raise invalid_error(
                    f"the output {target} already holds this split",
                    "use it, or give --force to write it again",
                )
            replaced = replaced_entries(target, is_stage=plan.is_one_stage, force=force)
            check_space(target, _needed_bytes(plan, options, target))
            before = _fingerprint(plan.index)
            with whole_directory(site, _identity(plan, options, origin), replaced) as place:
                write_stages(plan, facts, place, options, advance)
                if _fingerprint(plan.index) != before:
                    raise ZppError(
                        f"the weights in {source} changed while they were read",
                        "split again once nothing writes to them",
                    )
    except OSError as cause:
        raise disk_fault(cause, target) from cause
    return SplitResult(paths, False)


def target_of(plan: SplitPlan, output: Path) -> Path:
    """Return the directory that a run creates: `output`, or the stage directory in it for a single stage."""
    return output / plan.stages[0].directory_name if plan.is_one_stage else output


def split_checkpoint(
    source: Path,
    output: Path,
    num_stages: int | None = None,
    ranges: Sequence[str] | None = None,
    *,
    force: bool = False,
    options: CopyOptions | None = None,
) -> list[Path]:
    """Plan and write a split, and return the stage directories. See `plan_split` and `write_split`."""
    return write_split(plan_split(source, num_stages, ranges), output, force=force, options=options).paths


def _needed_bytes(plan: SplitPlan, options: CopyOptions, target: Path) -> int:
    """Return the disk space that a split still needs, in bytes, without shared blocks and files of an earlier run.

    Raises:
        ZppError: (INVALID) reflinks are required and the file system does not support them.
    """
    source = plan.index.directory
    small = sum((source / name).stat().st_size for name in plan.small_files) * len(plan.stages)
    shards = [shard for stage in plan.stages for shard in stage.shards]
    if options.mode is Mode.HARDLINK and options.fetch is None:
        shards = [shard for shard in shards if not shard.whole]
    elif options.mode in (Mode.AUTO, Mode.REFLINK) and options.fetch is None:
        shared = can_reflink(plan.index.headers[0].file, nearest_existing(target))
        if not shared and options.mode is Mode.REFLINK:
            raise invalid_error(
                f"files in {target.parent} cannot share blocks with those in {source}",
                "reflinks need both on one XFS or Btrfs file system; use --mode auto",
            )
        shards = [] if shared else shards
    left = unfinished(target)
    stats = [path.stat() for path in left.rglob("*.safetensors")] if left else []
    done = sum(min(stat.st_size, stat.st_blocks * 512) for stat in stats)  # a file that is being fetched has holes
    return max(0, sum(shard.nbytes for shard in shards) + small - done)


def _index_metadata(source: Path) -> dict[str, Any] | None:
    """Return the `metadata` of the source's index, which `read_index` has checked; None if there is no index."""
    path = source / INDEX_NAME
    if not path.exists():
        return None
    metadata = read_json(path, MAX_INDEX_BYTES, "index of a checkpoint").get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _identity(plan: SplitPlan, options: CopyOptions, origin: Origin | None) -> str:
    """Return a digest of everything that determines the result of a run, and of the state of the source files."""
    source = plan.index.directory
    stats = {name: _stamp(source / name) for name in plan.small_files}
    shards = [
        [stage.stage, shard.name, shard.whole, [tensor.name for tensor in shard.tensors]]
        for stage in plan.stages
        for shard in stage.shards
    ]
    settings = [zpptool.__version__, MANIFEST_VERSION, plan.partition, options.mode, options.hashed, stats, shards]
    content: list[Any] = [origin.name] if origin else [str(source.resolve()), _fingerprint(plan.index)]
    return digest_bytes(json.dumps([settings, content]).encode())


def _fingerprint(index: CheckpointIndex) -> list[tuple[int, int]]:
    """Return size and modification time of the source's weight files; they change when something writes to it."""
    return [_stamp(header.file) for header in index.headers]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
