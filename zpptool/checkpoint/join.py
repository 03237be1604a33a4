# SPDX-License-Identifier: Apache-2.0
"""Restore a checkpoint from its stages: every tensor, config and small file, in the original files.

The manifests record the source file of each tensor and its offset there. The header of a source file is written as
safetensors itself writes it; if the source had the same header, which its digest shows, the restored file is identical
to the source. All bytes with a digest in a stage's manifest are verified while they are copied.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zpptool.checkpoint.agreement import check_agreement
from zpptool.checkpoint.digest import digest_bytes, model_digest_of, tensors_digest
from zpptool.checkpoint.file_copy import Advance, sync
from zpptool.checkpoint.header import TensorInfo, read_header, write_header
from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.checkpoint.left_out import parts_left_out
from zpptool.checkpoint.manifest import Manifest, TensorEntry, WeightFile, load_manifest
from zpptool.checkpoint.model_config import read_config
from zpptool.checkpoint.output_checks import check_space, replaced_entries, resolve_output
from zpptool.checkpoint.output_directory import Workplace, disk_fault, locked, whole_directory
from zpptool.checkpoint.streaming import WrittenFile, read_chunks, run_parallel, write_all, write_hashed, write_whole
from zpptool.checkpoint.verify import find_target
from zpptool.errors import invalid_error
from zpptool.file_names import named_twice


class Holder(NamedTuple):
    """A tensor, and the stage to read it from."""

    stage: int
    entry: TensorEntry


@dataclass(frozen=True)
class RestoredFile:
    """One weight file of the restored checkpoint.

    Attributes:
        name: the name of the source file.
        tensors: in the order of the source file; their locations are those in the stages.
        metadata: the free-form `__metadata__` of the file.
        head: the header bytes of the file.
        same_head: whether the header is the source file's.
        hashed: whether the manifests have digests of all its tensors, which are then checked while they are copied.
    """

    name: str
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    head: bytes
    same_head: bool
    hashed: bool

    @property
    def identical(self) -> bool:
        """Whether the file is proven to be the source file, byte for byte, once it is written."""
        return self.same_head and self.hashed

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.head) + sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class JoinPlan:
    """Everything that a join will write.

    Attributes:
        stages: the stage directories, by stage number.
        manifests: their manifests, by stage number.
        holders: the stage to read each tensor from.
        files: the weight files to write.
    """

    stages: dict[int, Path]
    manifests: dict[int, Manifest]
    holders: dict[str, Holder]
    files: tuple[RestoredFile, ...]

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return sum(tensor.nbytes for file in self.files for tensor in file.tensors)

    @property
    def left_out(self) -> dict[str, str]:
        """Files of the source that the split does not hold: path to reason."""
        return dict(sorted((path, why) for own in self.manifests.values() for path, why in own.left_out.items()))

    @property
    def complete(self) -> bool:
        """Whether nothing was left out of the split that can be a part of the model."""
        return not self.manifests[0].dropped_tensors and not parts_left_out(self.left_out)


def first_holders(manifests: Mapping[int, Manifest]) -> dict[str, Holder]:
    """Return, for each tensor, the first stage that holds it."""
    holders: dict[str, Holder] = {}
    for stage in sorted(manifests):
        for entry in manifests[stage].tensors:
            holders.setdefault(entry.name, Holder(stage, entry))
    return holders


def plan_join(directory: Path) -> JoinPlan:
    """Plan how to restore the checkpoint from the stages in `directory`.

    Raises:
        ZppError: (INVALID) it is not a complete split, or the stages do not belong together.
    """
    target = find_target(directory)
    if not target.whole:
        raise invalid_error(f"{directory} is one stage of a split", "name the directory that holds all stages")
    manifests = {stage: load_manifest(path) for stage, path in target.stages.items()}
    faults = check_agreement(manifests, read_config(target.stages[min(manifests)]), directory)
    if faults:
        raise invalid_error(f"{directory} cannot be joined: {faults[0].message}", "`zpptool validate` lists all faults")
    holders = first_holders(manifests)
    files = _restored_files(target.stages, manifests, holders)
    small = [file.path for file in manifests[0].small_files]
    twice = named_twice([*(file.name for file in files), *small])
    if twice is not None:
        raise invalid_error(f"{directory} cannot be joined: its stages name the file {twice} twice")
    return JoinPlan(target.stages, manifests, holders, files)


def write_join(plan: JoinPlan, output: Path, advance: Advance = lambda _bytes: None, *, lock: bool = True) -> Path:
    """Write the checkpoint, completely or not at all, and return its directory. An interrupted join is resumed.

    Args:
        plan: from `plan_join`.
        output: the directory to create.
        advance: called from any thread with the number of bytes just written; their sum is `plan.nbytes`.
        lock: whether to lock the output against other runs.

    Raises:
        ZppError: (INVALID) the output exists, its disk is too full, or a stage does not match its manifest.
    """
    target = resolve_output(output, plan.stages[0].parent)
    identity = digest_bytes("".join(manifest.digest for manifest in plan.manifests.values()).encode())
    try:
        with locked(target, lock=lock) as site:
            replaced_entries(target, is_stage=False, force=None)
            check_space(target, plan.nbytes)
            with whole_directory(site, identity) as place:
                _write_all_files(plan, place, advance)
                if _model_digest(plan, place.directory) != plan.manifests[0].model_digest:
                    raise invalid_error(
                        f"the checkpoint joined from the stages in {plan.stages[0].parent} is not their model"
                    )
    except OSError as cause:
        raise disk_fault(cause, target) from cause
    return target


def _restored_files(
    stages: Mapping[int, Path], manifests: Mapping[int, Manifest], holders: Mapping[str, Holder]
) -> tuple[RestoredFile, ...]:
    places = {
        stage: {
            tensor.name: tensor
            for file in manifest.weight_files
            for tensor in read_header(stages[stage] / file.name).tensors
        }
        for stage, manifest in manifests.items()
    }
    homes = {(stage, file.name): file for stage, manifest in manifests.items() for file in manifest.weight_files}
    tensors: dict[str, list[tuple[int, TensorInfo]]] = defaultdict(list)
    sources: dict[str, WeightFile] = {}
    for name, (stage, entry) in holders.items():
        place = places[stage].get(name)
        if place is None or (place.dtype, place.shape) != (entry.dtype, entry.shape):
            raise invalid_error(
                f"stage {stage} lacks tensor {name} of its manifest", "`zpptool validate` lists all faults"
            )
        home = homes.get((stage, entry.file))
        if home is None:
            raise invalid_error(
                f"stage {stage} has tensor {name} in {entry.file!r}, which is not one of its weight files"
            )
        sources[home.source] = home
        tensors[home.source].append((entry.source_offset, place))
    return tuple(
        _restored_file(
            sources[name], tensors[name], all(holders[tensor.name].entry.blake3 for _, tensor in tensors[name])
        )
        for name in sorted(tensors)
    )


def _restored_file(home: WeightFile, placed: list[tuple[int, TensorInfo]], hashed: bool) -> RestoredFile:
    tensors = tuple(tensor for _offset, tensor in sorted(placed, key=lambda item: (item[0], item[1].nbytes)))
    head = write_header(tensors, home.metadata)
    same_head = digest_bytes(head) == home.source_header_blake3
    return RestoredFile(home.source, tensors, home.metadata, head, same_head, hashed)


def _write_all_files(plan: JoinPlan, place: Workplace, advance: Advance) -> None:
    first = plan.manifests[0]
    run_parallel([partial(_write_unless_finished, plan, place, file, advance=advance) for file in plan.files])
    for small in first.small_files:
        if small.path == INDEX_NAME:
            continue
        path = place.directory / small.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _nbytes, digest = write_whole(path, read_chunks(plan.stages[0] / small.path))
        if digest != small.blake3:
            raise invalid_error(f"stage 0: {small.path} was changed after the split", "split the model again")
    if first.source_index is not None:
        weight_map = {tensor.name: file.name for file in plan.files for tensor in file.tensors}
        index = {"metadata": first.source_index, "weight_map": weight_map}
        write_whole(place.directory / INDEX_NAME, [(json.dumps(index, indent=2, sort_keys=True) + "\n").encode()])


def _write_unless_finished(
    plan: JoinPlan, place: Workplace, file: RestoredFile, stop: threading.Event, advance: Advance
) -> None:
    path = place.directory / file.name
    if place.finished(path) is not None:
        advance(sum(tensor.nbytes for tensor in file.tensors))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("xb", buffering=0) as target:
        write_all(target, memoryview(file.head))
        hashes = write_hashed(target, file.tensors, stop, advance)
        sync(target.fileno())
    for name, digest in hashes.items():
        stage, entry = plan.holders[name]
        if entry.blake3 not in ("", digest):
            raise invalid_error(
                f"stage {stage}: the bytes of tensor {name} in {entry.file} were changed", "split the model again"
            )
    place.finish(path, WrittenFile(file.nbytes, digest_bytes(file.head), hashes))


def _model_digest(plan: JoinPlan, directory: Path) -> str:
    """Return the digest of the joined model, with the tensors that the split left out on purpose."""
    index = read_index(directory)
    held = [(tensor.name, tensor.dtype, tensor.shape) for tensor in index.tensors.values()]
    dropped = [(tensor.name, tensor.dtype, tensor.shape) for tensor in plan.manifests[0].dropped_tensors]
    return model_digest_of(index.config, tensors_digest([*held, *dropped]))
