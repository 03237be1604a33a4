# SPDX-License-Identifier: Apache-2.0
"""Plan what a split will write, from config, index and headers alone, before anything is written.

The weight files of a stage are planned in `shards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zpptool.checkpoint.index import INDEX_NAME, CheckpointIndex, TensorInfo, read_index
from zpptool.checkpoint.left_out import TRAINING, is_carriable, left_out_files, left_out_notes
from zpptool.checkpoint.leftovers import leftover_notes
from zpptool.checkpoint.lfs_pointers import is_lfs_pointer, lfs_fault
from zpptool.checkpoint.links import LinkBounds, link_fault
from zpptool.checkpoint.manifest import is_stage_directory
from zpptool.checkpoint.not_a_checkpoint import quantised_by_mlx
from zpptool.checkpoint.placement import Placement
from zpptool.checkpoint.shards import ShardPlan, plan_shards
from zpptool.checkpoint.smallfiles import small_files
from zpptool.checkpoint.structure import Assignment, Structure, assign, infer_structure
from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.file_names import is_inner_path
from zpptool.partition import LayerRange, Partition, resolve_partition


@dataclass(frozen=True)
class StagePlan:
    """One stage directory to write."""

    stage: int
    layers: LayerRange
    shards: tuple[ShardPlan, ...]

    @property
    def directory_name(self) -> str:
        """Name of the stage directory in the output directory."""
        return f"stage_{self.stage}"

    @property
    def num_tensors(self) -> int:
        """Number of tensors in the stage."""
        return sum(len(shard.tensors) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Total size of the stage's tensors in bytes."""
        return sum(shard.nbytes for shard in self.shards)


@dataclass(frozen=True)
class SplitPlan:
    """Everything that a split will write.

    Attributes:
        index: the index of the source.
        structure: the structure inferred from it.
        assignment: which stage holds which tensors, and why some are shared or dropped.
        stages: the stages to write, in order: all of the partition, or one.
        small_files: files copied into every stage, as paths relative to the source.
        placements: where the user placed tensors.
        left_out: files and links of the source that no stage holds: path to reason.
        notes: choices made for the checkpoint, for the user to read.
    """

    index: CheckpointIndex
    structure: Structure
    assignment: Assignment
    stages: tuple[StagePlan, ...]
    small_files: tuple[str, ...]
    placements: tuple[Placement, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Total size of the tensors of all stages in bytes."""
        return sum(stage.nbytes for stage in self.stages)

    @property
    def dropped_tensors(self) -> list[TensorInfo]:
        """The tensors that no stage holds."""
        held = {name for names in self.assignment.stages for name in names}
        return [self.index.tensors[name] for name in self.assignment.dropped if name not in held]

    @property
    def is_one_stage(self) -> bool:
        """Whether the plan is for a single stage out of several."""
        return len(self.stages) < len(self.partition)

    def only(self, stage: int) -> SplitPlan:
        """Return the plan restricted to one stage.

        Raises:
            ZppError: (USAGE) the stage does not exist.
        """
        if not 0 <= stage < len(self.partition):
            raise usage_error(f"there is no stage {stage}", f"the stages are 0 to {len(self.partition) - 1}")
        return replace(self, stages=(self.stages[stage],))

    @property
    def partition(self) -> Partition:
        """The layer ranges of all stages."""
        return self.assignment.partition


def plan_split(
    source: Path,
    num_stages: int | None = None,
    ranges: Sequence[str] | None = None,
    *,
    drop_prediction: bool = False,
    follow_links: bool = False,
    placements: Sequence[Placement] = (),
    aux: bool = False,
) -> SplitPlan:
    """Plan a split from config, index and headers.

    Args:
        source: a checkpoint directory.
        num_stages: number of stages; layers are divided evenly if no `ranges` are given.
        ranges: one layer range per stage, such as `0-8`.
        drop_prediction: leave out the layers and modules that predict tokens past the next one (MTP).
        follow_links: also copy the targets of links that lead out of the checkpoint.
        placements: where the user places tensors, which overrides what is inferred.
        aux: also carry files beside the weights that can be a part of the model (see `left_out`), in every stage.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read, its structure is ambiguous, a link leads out of it, or the
            ranges do not cover it; (USAGE) neither stages nor ranges are given.
    """
    if is_stage_directory(source):
        raise invalid_error(f"{source} is one stage of a split, not a checkpoint", "split the original checkpoint")
    index = read_index(source)
    with _noting(index):
        if (mlx := quantised_by_mlx(source, index.config, index.tensors)) is not None:
            raise mlx
        structure = infer_structure(index, placements)
    partition = resolve_partition(structure.num_layers, num_stages, ranges)
    assignment = assign(structure, partition, drop_prediction=drop_prediction)
    second_copies = {
        name: f"a second copy, in {file.name}; the index names {index.tensors[name].file.name}"
        for name, file in index.stale.items()
    }
    assignment = replace(assignment, dropped={**second_copies, **assignment.dropped})
    files = small_files(source, follow_links=follow_links)
    _refuse_odd_names(source, files.small)
    notes = [*index.notes, *structure.notes]
    left_out = left_out_files(index, files)
    carried = [path for path, reason in left_out.items() if aux and is_carriable(reason)]
    _refuse_pointers(source, [*files.small, *carried])
    left_out = {path: reason for path, reason in left_out.items() if path not in carried}
    notes += left_out_notes(left_out)
    notes += leftover_notes([*files.leftovers, *(path for path in files.others if left_out.get(path) == TRAINING)])
    if not follow_links:
        _refuse_links_out(source, [*files.outside, *carried], index)
    headers = {header.file: header for header in index.headers}
    stages = tuple(
        StagePlan(stage, partition[stage], plan_shards([index.tensors[name] for name in names], headers))
        for stage, names in enumerate(assignment.stages)
    )
    small = (*files.small, *carried)
    return SplitPlan(index, structure, assignment, stages, small, tuple(placements), left_out, tuple(notes))


@contextmanager
def _noting(index: CheckpointIndex) -> Iterator[None]:
    """Add the notes on the index to the hint of an error: a choice that they report may be the cause."""
    try:
        yield
    except ZppError as fault:
        if not index.notes:
            raise
        hint = " ".join([f"{(fault.hint or '').rstrip('.')}.", *(f"Besides: {note}." for note in index.notes)])
        raise ZppError(fault.message, hint, fault.exit_code) from fault


def _refuse_pointers(source: Path, names: Sequence[str]) -> None:
    fault = lfs_fault(source, [name for name in names if is_lfs_pointer(source / name)])
    if fault is not None:
        raise fault


def _refuse_odd_names(source: Path, names: Sequence[str]) -> None:
    """Refuse small files whose names a manifest cannot hold: not UTF-8, or with control characters."""
    odd = next((name for name in names if not is_inner_path(name)), None)
    if odd is not None:
        raise invalid_error(
            f"the file {odd!r} in {source} has a name that is not UTF-8 or contains control characters",
            "rename it, or remove it from the checkpoint",
        )


def _refuse_links_out(source: Path, links: Sequence[str], index: CheckpointIndex) -> None:
    bounds = LinkBounds(source)
    names = [*links, INDEX_NAME, *(header.file.relative_to(source).as_posix() for header in index.headers)]
    outside = [name for name in names if bounds.outside_target(source / name) is not None]
    if outside:
        raise link_fault(source, outside[0])
