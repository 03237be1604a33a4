# SPDX-License-Identifier: Apache-2.0
"""Does an output already hold what a split would write? Told from manifests, sizes and heads, not from tensor bytes."""

from __future__ import annotations

from pathlib import Path

from zpptool.checkpoint.digest import digest_bytes, digest_file
from zpptool.checkpoint.manifest import Manifest, is_stage_directory, load_manifest
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.splitplan import SplitPlan, StagePlan
from zpptool.checkpoint.stage_tensors import index_digest
from zpptool.checkpoint.stagewriter import ModelFacts, stage_directory
from zpptool.errors import ZppError, invalid_error


def is_kept(plan: SplitPlan, facts: ModelFacts, target: Path, *, hashed: bool) -> bool:
    """Whether every stage of `plan` stands in `target`, and no other; raises OSError."""
    if not plan.is_one_stage:
        found = {path.name for path in target.glob("stage_*")} if target.is_dir() else set()
        if found != {stage.directory_name for stage in plan.stages}:
            return False
    digest = index_digest(plan.index)
    return all(
        _stands(plan, facts, stage, stage_directory(plan, stage, target), digest, hashed=hashed)
        for stage in plan.stages
    )


def check_siblings(plan: SplitPlan, facts: ModelFacts, output: Path) -> None:
    """Refuse to put one stage beside those of another split.

    Raises:
        ZppError: (INVALID) `output` holds such a one.
    """
    if not plan.is_one_stage or not output.is_dir():
        return
    digest = index_digest(plan.index)
    for path in sorted(output.glob("stage_*")):
        if path.name == plan.stages[0].directory_name or not is_stage_directory(path):
            continue
        if not _of_this_split(plan, facts, load_manifest(path), digest):
            raise invalid_error(f"{path} is of another split or another model", "choose another --output-dir")


def _of_this_split(plan: SplitPlan, facts: ModelFacts, manifest: Manifest, digest: str) -> bool:
    same = manifest.ranges == plan.partition and manifest.model_digest == digest
    return same and manifest.sample_digest == facts.sample_digest


def _stands(
    plan: SplitPlan, facts: ModelFacts, stage: StagePlan, directory: Path, digest: str, *, hashed: bool
) -> bool:
    if not is_stage_directory(directory):
        return False
    try:
        manifest = load_manifest(directory)
    except ZppError:
        return False
    planned = [(tensor.name, shard.name) for shard in stage.shards for tensor in shard.tensors]
    if manifest.stage != stage.stage or planned != [(entry.name, entry.file) for entry in manifest.tensors]:
        return False
    if not _of_this_split(plan, facts, manifest, digest) or manifest.hashed < hashed:
        return False
    named = {file.path for file in manifest.small_files} | {file.name for file in manifest.weight_files} | {STAGE_FILE}
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if present != named or not set(plan.small_files) < named:
        return False
    small = all(digest_file(directory / file.path) == file.blake3 for file in manifest.small_files)
    source = plan.index.directory
    same = all(digest_file(directory / name) == digest_file(source / name) for name in plan.small_files)
    heads = {shard.name: shard.head for shard in stage.shards}
    return small and same and all(
        digest_bytes(heads[file.name]) == file.header_blake3
        and (directory / file.name).stat().st_size == file.nbytes
        and _starts_with(directory / file.name, heads[file.name])
        for file in manifest.weight_files
    )  # fmt: skip


def _starts_with(path: Path, head: bytes) -> bool:
    with path.open("rb", buffering=0) as stream:
        return stream.read(len(head)) == head
