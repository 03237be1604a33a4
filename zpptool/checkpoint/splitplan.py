# SPDX-License-Identifier: Apache-2.0
"""What a split will write, known before anything is: from config, index and headers alone.

Which weight files a stage gets is told in `shards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zpptool.checkpoint.index import INDEX_NAME, CheckpointIndex, TensorInfo, read_index
from zpptool.checkpoint.links import LinkBounds, link_fault
from zpptool.checkpoint.manifest import is_stage_directory
from zpptool.checkpoint.shards import ShardPlan, plan_shards
from zpptool.checkpoint.smallfiles import small_files
from zpptool.checkpoint.structure import Assignment, Structure, assign, infer_structure
from zpptool.errors import invalid_error, usage_error
from zpptool.partition import LayerRange, Partition, resolve_partition


@dataclass(frozen=True)
class StagePlan:
    """One stage directory to write."""

    stage: int
    layers: LayerRange
    shards: tuple[ShardPlan, ...]

    @property
    def directory_name(self) -> str:
        """Under the output directory."""
        return f"stage_{self.stage}"

    @property
    def num_tensors(self) -> int:
        """How many tensors the stage holds."""
        return sum(len(shard.tensors) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of the stage's tensors."""
        return sum(shard.nbytes for shard in self.shards)


@dataclass(frozen=True)
class SplitPlan:
    """All that a split will write.

    Attributes:
        index: of the source.
        structure: inferred from it.
        assignment: which stage holds which tensors, and why some are shared or dropped.
        stages: to write, in order: all of the partition, or one.
        small_files: that every stage carries, relative to the source.
        notes: choices that a user should know of.
    """

    index: CheckpointIndex
    structure: Structure
    assignment: Assignment
    stages: tuple[StagePlan, ...]
    small_files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all stages."""
        return sum(stage.nbytes for stage in self.stages)

    @property
    def dropped_tensors(self) -> list[TensorInfo]:
        """The tensors that no stage holds at all."""
        held = {name for names in self.assignment.stages for name in names}
        return [self.index.tensors[name] for name in self.assignment.dropped if name not in held]

    @property
    def is_one_stage(self) -> bool:
        """Whether this is for one stage out of several."""
        return len(self.stages) < len(self.partition)

    def only(self, stage: int) -> SplitPlan:
        """The plan for one stage of these.

        Raises:
            ZppError: (USAGE) there is no such stage.
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
) -> SplitPlan:
    """Plan a split from config, index and headers.

    Args:
        source: a checkpoint directory.
        num_stages: how many stages; evenly cut where no `ranges` are given.
        ranges: one layer range a stage, such as `0-8`.
        drop_prediction: leave out the layers and modules that predict tokens past the next one (MTP).
        follow_links: take in what links lead to that lead out of the checkpoint.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read or cut with certainty, a link leads out of it, or the ranges
            do not cover it; (USAGE) neither stages nor ranges are given.
    """
    if is_stage_directory(source):
        raise invalid_error(f"{source} is one stage of a split, not a checkpoint", "split the original checkpoint")
    index = read_index(source)
    structure = infer_structure(index)
    partition = resolve_partition(structure.num_layers, num_stages, ranges)
    assignment = assign(structure, partition, drop_prediction=drop_prediction)
    second_copies = {
        name: f"a second copy, in {file.name}; the index names {index.tensors[name].file.name}"
        for name, file in index.stale.items()
    }
    assignment = replace(assignment, dropped={**second_copies, **assignment.dropped})
    files = small_files(source, follow_links=follow_links)
    if not follow_links:
        _refuse_links_out(source, files.outside, index)
    notes = [*index.notes, *structure.notes]
    notes += [f"left out {name}: too large to belong to a tokenizer or a config" for name in files.large]
    headers = {header.file: header for header in index.headers}
    stages = tuple(
        StagePlan(stage, partition[stage], plan_shards([index.tensors[name] for name in names], headers))
        for stage, names in enumerate(assignment.stages)
    )
    return SplitPlan(index, structure, assignment, stages, tuple(files.small), tuple(notes))


def _refuse_links_out(source: Path, small: Sequence[str], index: CheckpointIndex) -> None:
    bounds = LinkBounds(source)
    others = [INDEX_NAME, *(header.file.name for header in index.headers)]
    outside = [*small, *(name for name in others if bounds.way_out(source / name) is not None)]
    if outside:
        raise link_fault(source, outside[0])
