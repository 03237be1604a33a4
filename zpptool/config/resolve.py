# SPDX-License-Identifier: Apache-2.0
"""Which stage of a pipeline this is, and which layers each stage owns: read from the stage directory or the plan, or
worked out from what the user gave.

A stage directory holds its index and every stage's range. A full checkpoint holds its number of layers. Where only the
stage's own range is given, the other ranges are filled in evenly, because vLLM needs a whole partition; the head checks
the actual ones in the roll call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.config.plan import PipelinePlan, plan_faults
from zpptool.config.runs_on import AUTO
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import invalid_error, usage_error
from zpptool.partition import LayerRange, Partition, even_partition, parse_range, resolve_partition


@dataclass(frozen=True)
class StagePlace:
    """The index of a stage, every stage's range, and where the stage reads its tensors from.

    Attributes:
        directory: the stage's own directory, or the full checkpoint.
        stage: the stage's index.
        partition: every stage's layer range.
    """

    directory: Path
    stage: int
    partition: Partition


def resolve_place(
    model: Path,
    *,
    stage: int | None = None,
    num_stages: int | None = None,
    layer_range: str | None = None,
    ranges: Sequence[str] = (),
) -> StagePlace:
    """Determine which stage this is, of how many, and which layers each owns.

    Args:
        model: a stage directory, a directory of stages as `split` writes them, or a full checkpoint.
        stage: the stage's index, where the directory does not hold it.
        num_stages: how many stages there are, where neither the directory nor `ranges` gives it.
        layer_range: this stage's own range.
        ranges: every stage's range.

    Raises:
        ZppError: (USAGE) something is missing; (INVALID) ranges or directory are wrong, or contradict
            each other.
    """
    directory = stage_directory(model, stage)
    if is_stage_directory(directory):
        place = _place_of_directory(directory)
        _refuse_contradictions(place, stage, num_stages, layer_range, ranges)
        return place
    own = which_stage(stage, str(directory))
    partition = stage_partition(
        count_layers(directory), own, num_stages=num_stages, layer_range=layer_range, ranges=ranges
    )
    return StagePlace(directory, own, partition)


def which_stage(stage: int | None, model: str) -> int:
    """The index of a stage of a full checkpoint; raises ZppError (USAGE) if it is not given.

    `stages/stage_3` may be the path of a stage or the name of a model on the Hub; where nothing has that path, both
    are said.
    """
    if stage is None and not os.path.exists(model):
        raise usage_error(
            f"{model} is not a directory, and for a model of that name on the Hub the stage is not given",
            "Give a stage directory that exists, or --stage-idx.",
        )
    if stage is None:
        raise usage_error(f"{model} is a full checkpoint: which stage is this to be?", "Give --stage-idx.")
    return stage


def stage_partition(
    num_layers: int, stage: int, *, num_stages: int | None, layer_range: str | None, ranges: Sequence[str]
) -> Partition:
    """Every stage's layer range, for a stage of a full checkpoint.

    Args:
        num_layers: how many decoder layers the model has.
        stage, num_stages, layer_range, ranges: as for `resolve_place`.

    Raises:
        ZppError: as `resolve_place`.
    """
    if num_stages is None:
        num_stages = len(ranges)
    if num_stages < 1:
        raise usage_error("how many stages does the pipeline have?", "Give --total-stages.")
    if not 0 <= stage < num_stages:
        raise usage_error(f"there is no stage {stage} of {num_stages}: the first is stage 0, the last {num_stages - 1}")
    if layer_range is not None and not ranges:
        return partition_around(parse_range(layer_range), stage, num_stages, num_layers)
    partition = resolve_partition(num_layers, num_stages, list(ranges) or None)
    if layer_range is not None and parse_range(layer_range) != partition[stage]:
        raise invalid_error(
            f"the layer range is given as {parse_range(layer_range)}, but of the ranges {_as_text(partition)} stage"
            f" {stage} owns {partition[stage]}"
        )
    return partition


def spec_of_plan(
    plan: PipelinePlan, stage: int | None, model: Path | None, runtime: RuntimeOptions = RuntimeOptions()
) -> StageSpec:
    """The spec of one stage of a plan.

    Args:
        plan: the plan.
        stage: the index of the stage.
        model: the stage's own directory, or the checkpoint on this machine; the plan's own if None.
        runtime: how the stage runs; the plan's wire codec replaces its own, and so does a device that the plan names.

    Raises:
        ZppError: (USAGE) no stage is named, or another device than the plan's is given; (INVALID) the plan cannot work,
            or the model is not the one planned for.
    """
    if stage is None:
        raise usage_error("which stage of the plan is this?", "Give --stage-idx.")
    if not 0 <= stage < len(plan.stages):
        raise usage_error(f"the plan has no stage {stage}; it has {len(plan.stages)}, from 0 on")
    directory = stage_directory(model or Path(plan.model), stage)
    faults = plan_faults(plan, directory)
    if faults:
        raise invalid_error("the plan cannot work: " + "; ".join(faults), "zpptool validate FILE lists this too.")
    if is_stage_directory(directory):
        place = _place_of_directory(directory)
        _refuse_contradictions(place, stage, len(plan.stages), None, [str(own) for own in plan.partition])
    own = plan.stages[stage]
    device = own.runs_on.device
    if AUTO not in (device, runtime.device) and device != runtime.device:
        raise usage_error(
            f"the plan has device {device} for stage {stage}, and {runtime.device} is given",
            "Leave out --device, or change the plan.",
        )
    return StageSpec(
        engine=plan.engine,
        model=str(directory),
        partition=tuple((layers.start, layers.end) for layers in plan.partition),
        stage=stage,
        bind=own.bind,
        connect=own.connect,
        dtype=plan.dtype,
        api_host=own.host,
        api_port=plan.api_port,
        engine_args=plan.engine_args,
        plan_digest=plan.digest,
        tensor_parallel_size=own.tensor_parallel_size,
        runtime=msgspec.structs.replace(
            runtime, wire_codec=plan.wire_codec, device=runtime.device if device == AUTO else device
        ),
    )


def stage_directory(model: Path, stage: int | None) -> Path:
    """`model` itself, or the directory of `stage` in it where it holds stages as `split` writes them.

    Raises:
        ZppError: (USAGE) it holds stages, and no stage is named; (INVALID) it does not hold that one.
    """
    inside = sorted(path.parent for path in model.glob("stage_*/zpp-stage.json"))
    if not inside:
        return model
    if stage is None:
        raise usage_error(f"{model} holds {len(inside)} stages: which one is this?", "Give --stage-idx.")
    wanted = model / f"stage_{stage}"
    if wanted not in inside:
        raise invalid_error(f"{model} holds no stage_{stage}; it holds {', '.join(path.name for path in inside)}")
    return wanted


def partition_around(own: LayerRange, stage: int, num_stages: int, num_layers: int) -> Partition:
    """A whole partition in which `stage` owns `own` and the stages on either side share the rest evenly.

    Raises:
        ZppError: (INVALID) no partition has that range at that index.
    """
    before, after = stage, num_stages - stage - 1
    rest = num_layers - own.end
    fits = own.count > 0 and own.start >= before and rest >= after
    if not fits or (before == 0) != (own.start == 0) or (after == 0) != (rest == 0):
        raise invalid_error(
            f"stage {stage} of {num_stages} cannot own layers {own} of {num_layers}: each of the {before} stages before"
            f" it and the {after} after it needs at least one layer, and none may be left over"
        )
    head = even_partition(own.start, before) if before else ()
    tail = even_partition(rest, after) if after else ()
    return (*head, own, *(LayerRange(part.start + own.end, part.end + own.end) for part in tail))


def _place_of_directory(directory: Path) -> StagePlace:
    manifest = load_manifest(directory)
    return StagePlace(directory, manifest.stage, manifest.ranges)


def _refuse_contradictions(
    place: StagePlace, stage: int | None, num_stages: int | None, layer_range: str | None, ranges: Sequence[str]
) -> None:
    """Refuse what the user gave where the stage directory holds something else."""
    own = None if layer_range is None else parse_range(layer_range)
    every = _as_text([parse_range(text) for text in ranges]) or None
    facts: list[tuple[str, object, object]] = [
        ("stage", stage, place.stage),
        ("number of stages", num_stages, len(place.partition)),
        ("layer range", own, place.partition[place.stage]),
        ("partition", every, _as_text(place.partition)),
    ]
    for what, given, actual in facts:
        if given is not None and given != actual:
            raise invalid_error(
                f"the {what} is given as {given}, but {place.directory} has {actual}",
                "Leave it out: a stage directory holds it. For another partition, split the model again.",
            )


def _as_text(ranges: Sequence[LayerRange]) -> str:
    return " ".join(map(str, ranges))
