# SPDX-License-Identifier: Apache-2.0
"""Write the files of planned stages into a work directory: weight files in parallel, then index, small files, manifest.

A weight file that an earlier run finished is reused. The manifest of a stage is written last, after every file that it
lists.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import zpptool
from zpptool.checkpoint.digest import digest_bytes, model_digest_of, source_digest_of
from zpptool.checkpoint.fetched_shard import write_fetched
from zpptool.checkpoint.file_copy import Advance
from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.manifest import MANIFEST_VERSION, DroppedTensor, Manifest, SmallFile, TensorEntry, WeightFile
from zpptool.checkpoint.output_directory import Workplace
from zpptool.checkpoint.shards import ShardPlan, read_head
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.splitplan import SplitPlan, StagePlan
from zpptool.checkpoint.stage_tensors import tensor_list_digest
from zpptool.checkpoint.streaming import CopyOptions, WrittenFile, read_chunks, run_parallel, write_shard, write_whole
from zpptool.errors import ZppError


@dataclass(frozen=True)
class ModelFacts:
    """Facts that the manifests of all stages have in common.

    Attributes:
        sample_digest: see `sample`.
        source_index: the `metadata` of the source's index; None if the source has no index.
        source: names the source and the state of its files; empty for a directory.
    """

    sample_digest: str
    source_index: dict[str, Any] | None
    source: str = ""


def write_stages(plan: SplitPlan, facts: ModelFacts, place: Workplace, options: CopyOptions, advance: Advance) -> None:
    """Write all stages of `plan`, each into a directory of its own in `place`; a single stage into `place` itself.

    Args:
        plan: the stages to write.
        facts: what their manifests have in common.
        place: the directories to work in.
        options: how the bytes are copied, and whether they are hashed.
        advance: called from any thread with the number of bytes just written.

    Raises:
        ZppError: (FAILURE) the source cannot be read, or changed while it was read; OSError: the disk failed.
    """
    directories = {stage.stage: stage_directory(plan, stage, place.directory) for stage in plan.stages}
    for directory in directories.values():
        directory.mkdir(exist_ok=True)
    shards = [(stage.stage, shard) for stage in plan.stages for shard in stage.shards]
    jobs: list[Callable[[threading.Event], WrittenFile]] = [
        partial(_write_unless_finished, place, directories[stage] / shard.name, shard, options, advance=advance)
        for stage, shard in shards
    ]
    written = dict(zip(((stage, shard.name) for stage, shard in shards), run_parallel(jobs), strict=True))
    hashes: dict[str, str] = {}
    for file in written.values():
        for name, digest in file.hashes.items():
            if hashes.setdefault(name, digest) != digest:
                raise ZppError(
                    f"tensor {name} read differently the second time",
                    "check whether another process writes to the source",
                )
    all_read = len(hashes) == len(plan.index.tensors) - len(plan.dropped_tensors)
    source_digest = source_digest_of(hashes) if all_read else ""
    list_digest = tensor_list_digest(plan.index)
    for stage in plan.stages:
        directory = directories[stage.stage]
        small = [_write_index(stage, directory)]
        small += [_copy_small(plan.index.directory, directory, name) for name in plan.small_files]
        files = {shard.name: written[stage.stage, shard.name] for shard in stage.shards}
        manifest = _manifest(plan, facts, stage, files, small, source_digest, list_digest)
        write_whole(directory / STAGE_FILE, [manifest.to_bytes()])


def stage_directory(plan: SplitPlan, stage: StagePlan, output: Path) -> Path:
    """Return the directory of a stage: `output` itself if the plan is for a single stage, else a directory in it."""
    return output if plan.is_one_stage else output / stage.directory_name


def _write_unless_finished(
    place: Workplace, path: Path, shard: ShardPlan, options: CopyOptions, stop: threading.Event, advance: Advance
) -> WrittenFile:
    finished = place.finished(path)
    if finished is not None and finished.header_blake3 == digest_bytes(shard.head):
        advance(shard.nbytes)
        return finished
    if options.fetch is not None:
        written = write_fetched(path, place.journal(path), shard, options.fetch, stop, advance)
    else:
        path.unlink(missing_ok=True)
        written = write_shard(path, shard, options, stop, advance)
    place.finish(path, written)
    return written


def _write_index(stage: StagePlan, directory: Path) -> SmallFile:
    weight_map = {tensor.name: shard.name for shard in stage.shards for tensor in shard.tensors}
    content = {"metadata": {"total_size": stage.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
    nbytes, digest = write_whole(directory / INDEX_NAME, [(json.dumps(content, indent=2) + "\n").encode()])
    return SmallFile(INDEX_NAME, nbytes, digest)


def _copy_small(source: Path, directory: Path, name: str) -> SmallFile:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbytes, digest = write_whole(path, read_chunks(source / name))
    return SmallFile(name, nbytes, digest)


def _manifest(
    plan: SplitPlan,
    facts: ModelFacts,
    stage: StagePlan,
    files: dict[str, WrittenFile],
    small: Sequence[SmallFile],
    source_digest: str,
    list_digest: str,
) -> Manifest:
    tensors = tuple(
        TensorEntry(
            tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, files[shard.name].hashes.get(tensor.name, ""),
            shard.name, tensor.offset,
        )
        for shard in stage.shards
        for tensor in shard.tensors
    )  # fmt: skip
    return Manifest(
        schema_version=MANIFEST_VERSION,
        zpptool_version=zpptool.__version__,
        digest="",
        source_digest=source_digest,
        sample_digest=facts.sample_digest,
        source_index=facts.source_index,
        model_digest=model_digest_of(plan.index.config, list_digest),
        tensors_digest=list_digest,
        num_layers=plan.structure.num_layers,
        num_stages=len(plan.partition),
        stage=stage.stage,
        partition=tuple((layers.start, layers.end) for layers in plan.partition),
        layer_prefix=plan.structure.layer_prefix,
        tensors=tensors,
        shared={entry.name: reason for entry in tensors if (reason := plan.assignment.shared.get(entry.name))},
        dropped=dict(plan.assignment.dropped),
        dropped_tensors=tuple(
            DroppedTensor(tensor.name, tensor.dtype, tensor.shape) for tensor in plan.dropped_tensors
        ),
        weight_files=tuple(_weight_file(shard, files[shard.name], plan.index.directory) for shard in stage.shards),
        small_files=tuple(small),
        placements=plan.placements,
        left_out=dict(plan.left_out),
        source=facts.source or msgspec.UNSET,
    )


def _weight_file(shard: ShardPlan, written: WrittenFile, source: Path) -> WeightFile:
    return WeightFile(
        shard.name,
        written.nbytes,
        written.header_blake3,
        shard.source.relative_to(source).as_posix(),
        digest_bytes(read_head(shard.header)),
        shard.header.metadata,
    )
