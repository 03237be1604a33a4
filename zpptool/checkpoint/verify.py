# SPDX-License-Identifier: Apache-2.0
"""Verify a split: every layer is owned once, every tensor is accounted for, every byte is unchanged.

Three checks, each of which reports all faults: the manifests together describe the model (`agreement`), the files match
the manifests (`stagefiles`), and, if the source is given, they match it byte for byte (`_check_source`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zpptool.checkpoint.agreement import check_agreement
from zpptool.checkpoint.digest import digest_file
from zpptool.checkpoint.faults import SplitFault, SplitFaultCode
from zpptool.checkpoint.file_copy import Advance
from zpptool.checkpoint.index import INDEX_NAME, CheckpointIndex, read_index
from zpptool.checkpoint.left_out import left_out_files, parts_left_out
from zpptool.checkpoint.manifest import Manifest, is_stage_directory, load_manifest
from zpptool.checkpoint.model_config import read_config
from zpptool.checkpoint.smallfiles import small_files
from zpptool.checkpoint.stage_tensors import index_digest
from zpptool.checkpoint.stagefiles import WeightCheck, check_small_files, check_weights
from zpptool.checkpoint.streaming import hash_tensors, run_parallel
from zpptool.errors import ZppError, invalid_error

_STAGE_NAME = re.compile(r"stage_(0|[1-9]\d*)")


class Target(NamedTuple):
    """The split or stage to verify.

    Attributes:
        directory: a split, or one stage directory of it.
        stages: the stage directories, by stage number.
        whole: whether it is a whole split.
        model: the index of the source checkpoint to compare with; None for none.
    """

    directory: Path
    stages: dict[int, Path]
    whole: bool
    model: CheckpointIndex | None

    @property
    def nbytes(self) -> int:
        """Bytes that the verification reads from weight files."""
        files = [path for stage in self.stages.values() for path in stage.glob("*.safetensors")]
        return sum(path.stat().st_size for path in files if path.is_file()) + (self.model.nbytes if self.model else 0)


@dataclass
class Verdict:
    """The result of a verification.

    Attributes:
        manifests: the manifests that could be read, by stage number.
        faults: all faults; empty if the split is valid.
        source_left_out: files of the given source that the split does not hold: path to reason.
    """

    manifests: dict[int, Manifest] = field(default_factory=dict)
    faults: list[SplitFault] = field(default_factory=list)
    source_left_out: dict[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, str]:
        """Files of the source that no stage holds: path to reason."""
        recorded = {path: reason for manifest in self.manifests.values() for path, reason in manifest.left_out.items()}
        return dict(sorted({**recorded, **self.source_left_out}.items()))

    @property
    def complete(self) -> bool:
        """Whether nothing was left out that can be a part of the model."""
        return not self.dropped_of_model and not parts_left_out(self.left_out)

    @property
    def dropped_of_model(self) -> set[str]:
        """Tensors of the model's own tensor list that no stage holds."""
        return {tensor.name for manifest in self.manifests.values() for tensor in manifest.dropped_tensors}

    @property
    def valid(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    @property
    def unhashed(self) -> list[int]:
        """The stages without digests, whose bytes can only be compared with a source."""
        return [stage for stage, manifest in self.manifests.items() if not manifest.hashed]

    @property
    def dropped(self) -> dict[str, str]:
        """Tensors of the source that no stage holds: name to reason."""
        return {name: reason for manifest in self.manifests.values() for name, reason in manifest.dropped.items()}


def find_target(directory: Path, model: Path | None = None) -> Target:
    """Find the stages in `directory`, and index the source `model` if it is given.

    Raises:
        ZppError: (INVALID) `directory` holds no stage, or `model` is not a checkpoint.
    """
    if not directory.is_dir():
        raise invalid_error(f"{directory} is not a directory", "name the --output-dir of a split")
    try:
        return _find_target(directory, model)
    except OSError as cause:
        raise invalid_error(f"{cause.filename} cannot be read: {cause.strerror}") from cause


def _find_target(directory: Path, model: Path | None) -> Target:
    source = read_index(model) if model is not None else None
    if is_stage_directory(directory):
        return Target(directory, {load_manifest(directory).stage: directory}, False, source)
    stages = {
        int(match[1]): path
        for path in sorted(directory.iterdir())
        if (match := _STAGE_NAME.fullmatch(path.name)) and path.is_dir()
    }
    if not stages:
        raise invalid_error(f"{directory} holds no stage_0, stage_1, ...", "name the --output-dir of a split")
    return Target(directory, dict(sorted(stages.items())), True, source)


def verify_split(target: Target, advance: Advance = lambda _bytes: None) -> Verdict:
    """Verify a split, or one stage of it.

    Args:
        target: from `find_target`.
        advance: called from any thread with the number of bytes just read; their sum is at most `target.nbytes`.
    """
    verdict = Verdict()
    for stage, path in target.stages.items():
        try:
            verdict.manifests[stage] = load_manifest(path)
        except ZppError as fault:
            verdict.faults.append(SplitFault(SplitFaultCode.MANIFEST, f"stage {stage}: {fault.message}", stage))
    if not verdict.manifests:
        return verdict
    if target.whole:
        verdict.faults += _check_together(target, verdict.manifests)
    hashes: dict[int, dict[str, str]] = {}
    for stage, manifest in verdict.manifests.items():
        verdict.faults += check_small_files(target.stages[stage], manifest)
        checks = _check_stage_weights(target.stages[stage], manifest, advance, hash_all=target.model is not None)
        verdict.faults += [fault for check in checks for fault in check.faults]
        hashes[stage] = {name: digest for check in checks for name, digest in check.hashes.items()}
    if target.model is not None:
        verdict.faults += _check_source(target, target.model, verdict.manifests, hashes, advance)
        verdict.source_left_out = _left_out_of(target.model, verdict.manifests.values())
    return verdict


def _check_together(target: Target, manifests: Mapping[int, Manifest]) -> list[SplitFault]:
    stage = min(manifests)
    try:
        config = read_config(target.stages[stage])
    except ZppError as fault:
        return [SplitFault(SplitFaultCode.FILE, f"stage {stage}: {fault.message}", stage)]
    return check_agreement(manifests, config, target.directory)


def _check_stage_weights(directory: Path, manifest: Manifest, advance: Advance, *, hash_all: bool) -> list[WeightCheck]:
    return run_parallel(
        [
            partial(check_weights, directory, manifest, file, advance=advance, hash_all=hash_all)
            for file in manifest.weight_files
        ]
    )


def _check_source(
    target: Target,
    source: CheckpointIndex,
    manifests: Mapping[int, Manifest],
    hashes: Mapping[int, Mapping[str, str]],
    advance: Advance,
) -> list[SplitFault]:
    """Compare the stages with the source: model digest, small files, and tensor bytes."""
    faults = []
    digest = index_digest(source)
    for stage, manifest in manifests.items():
        if manifest.model_digest != digest:
            message = f"stage {stage} was not split from the model in {source.directory}: config or tensor list differ"
            faults.append(SplitFault(SplitFaultCode.SOURCE, message, stage))
        faults += _check_source_files(manifest, target.stages[stage], source.directory)
    wanted = _source_hashes(source, {name for held in hashes.values() for name in held}, advance)
    for stage, held in hashes.items():
        for name, found in held.items():
            if name not in wanted:
                message = f"stage {stage}: tensor {name} is not in the model in {source.directory}"
                faults.append(SplitFault(SplitFaultCode.EXTRA, message, stage, name))
            elif found != wanted[name]:
                message = f"stage {stage}: the bytes of tensor {name} differ from the model's in {source.directory}"
                faults.append(SplitFault(SplitFaultCode.BYTES, message, stage, name))
    if target.whole:
        dropped = {tensor.name for manifest in manifests.values() for tensor in manifest.dropped_tensors}
        lost = source.tensors.keys() - dropped - {name for held in hashes.values() for name in held}
        faults += [
            SplitFault(SplitFaultCode.MISSING, f"no stage holds tensor {name} of the model", None, name)
            for name in sorted(lost)
        ]
    return faults


def _source_hashes(source: CheckpointIndex, names: set[str], advance: Advance) -> dict[str, str]:
    jobs = []
    for header in source.headers:
        wanted = [tensor for tensor in header.tensors if source.tensors[tensor.name] == tensor and tensor.name in names]
        jobs.append(partial(hash_tensors, wanted, advance=advance))
    return {name: digest for hashes in run_parallel(jobs) for name, digest in hashes.items()}


def _left_out_of(source: CheckpointIndex, manifests: Iterable[Manifest]) -> dict[str, str]:
    """Return the files of the source that no stage holds."""
    held = {file.path for manifest in manifests for file in manifest.small_files}
    found = left_out_files(source, small_files(source.directory, follow_links=True))
    return {path: reason for path, reason in found.items() if path not in held}


def _check_source_files(manifest: Manifest, directory: Path, source: Path) -> list[SplitFault]:
    """Compare the small files, and others that the stage carries, with the source's."""
    stage, faults = manifest.stage, []
    theirs = small_files(source, follow_links=True).small
    carried = {file.path for file in manifest.small_files if file.path != INDEX_NAME}
    for name in sorted({*theirs, *(name for name in carried if (source / name).is_file())}):
        copied = directory / name
        if not copied.is_file():
            message = f"stage {stage}: {name} of the model is missing"
        elif digest_file(copied) != digest_file(source / name):
            message = f"stage {stage}: {name} differs from the model's"
        else:
            continue
        faults.append(SplitFault(SplitFaultCode.FILE, message, stage))
    for name in sorted({*small_files(directory).small, *carried} - set(theirs)):
        if not (source / name).is_file():
            faults.append(SplitFault(SplitFaultCode.FILE, f"stage {stage}: {name} is not in the model", stage))
    return faults
