# SPDX-License-Identifier: Apache-2.0
"""Check whether an output already holds what a split would write.

Manifests, file sizes, safetensors headers and small files are compared; tensor bytes are not read.
"""

from __future__ import annotations

from pathlib import Path

from zpptool.checkpoint.digest import digest_bytes, digest_file
from zpptool.checkpoint.manifest import Manifest, is_stage_directory, load_manifest
from zpptool.checkpoint.output_checks import is_ignored
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.splitplan import SplitPlan, StagePlan
from zpptool.checkpoint.stage_tensors import index_digest
from zpptool.checkpoint.stagewriter import ModelFacts, stage_directory
from zpptool.errors import ZppError, invalid_error


def holds_split(plan: SplitPlan, facts: ModelFacts, target: Path, *, hashed: bool) -> bool:
    """Return whether `target` holds every stage of `plan` and no other stage.

    Args:
        plan: the split to write.
        facts: what all its manifests have in common.
        target: the destination.
        hashed: whether the existing manifests must have a digest of every tensor.

    Raises:
        OSError: a file cannot be read.
    """
    if not plan.is_one_stage:
        found = {path.name for path in target.glob("stage_*")} if target.is_dir() else set()
        if found != {stage.directory_name for stage in plan.stages}:
            return False
    digest = index_digest(plan.index)
    return all(
        _holds_stage(plan, facts, stage, stage_directory(plan, stage, target), digest, hashed=hashed)
        for stage in plan.stages
    )


def check_siblings(plan: SplitPlan, facts: ModelFacts, output: Path) -> None:
    """Refuse to write a single stage into a directory with stages of another split.

    Raises:
        ZppError: (INVALID) `output` holds a stage of another split or model.
    """
    if not plan.is_one_stage or not output.is_dir():
        return
    digest = index_digest(plan.index)
    for path in sorted(output.glob("stage_*")):
        if path.name == plan.stages[0].directory_name or not is_stage_directory(path):
            continue
        if not _belongs_to_split(plan, facts, load_manifest(path), digest):
            raise invalid_error(f"{path} belongs to another split or another model", "choose another --output-dir")


def _belongs_to_split(plan: SplitPlan, facts: ModelFacts, manifest: Manifest, digest: str) -> bool:
    same = manifest.ranges == plan.partition and manifest.model_digest == digest
    return same and manifest.placements == plan.placements and manifest.sample_digest == facts.sample_digest


def _holds_stage(
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
    if not _belongs_to_split(plan, facts, manifest, digest) or manifest.hashed < hashed:
        return False
    named = {file.path for file in manifest.small_files} | {file.name for file in manifest.weight_files} | {STAGE_FILE}
    inner = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    present = {path.as_posix() for path in inner if not is_ignored(path.parts[0])}
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
