# SPDX-License-Identifier: Apache-2.0
"""Parse, compute and check which stage owns which decoder layers.

A layer range is half-open, `[start, end)`, and written `0-8` (layers 0 to 7). A `Partition` returned by this module
covers every layer of the model exactly once, in stage order, with at least one layer per stage. For invalid ranges all
faults are reported, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

from zpptool.errors import ZppError, invalid_error, usage_error

# Nine digits are more layers than any model has, and keep every number small enough to print.
_RANGE = re.compile(r"(?P<open>\[)?\s*(?P<start>[0-9]{1,9})\s*[-:]\s*(?P<end>[0-9]{1,9})\s*(?(open)\])")
_RANGES = re.compile(r"\[?\s*\d+\s*[-:]\s*\d+\s*\]?([,\s]+\[?\s*\d+\s*[-:]\s*\d+\s*\]?)*")


MAX_STAGES = 10_000
"""Maximum number of stages of a pipeline; no model has as many layers."""
MAX_OVERLAPS = 100
"""Maximum number of overlaps that are listed: among many ranges nearly every pair may overlap."""
MAX_FAULTS_IN_MESSAGE = 10


class LayerRange(NamedTuple):
    """The decoder layers `start` to `end - 1`."""

    start: int
    end: int

    @property
    def count(self) -> int:  # type: ignore[override]  # overrides tuple.count()
        """Number of layers in the range."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


Partition = tuple[LayerRange, ...]
"""The ranges of all stages, in order; they cover every layer exactly once."""


class FaultCode(StrEnum):
    """Kinds of fault in a list of ranges. Scripts rely on the values."""

    FORMAT = "format"
    """Not of the form START-END."""
    EMPTY = "empty"
    """Contains no layer."""
    BOUNDS = "bounds"
    """Extends past the model's last layer."""
    ORDER = "order"
    """Ends before it starts, or starts before the preceding stage does."""
    OVERLAP = "overlap"
    """Shares layers with an earlier stage."""
    GAP = "gap"
    """Layers between two stages are owned by no stage."""
    COVERAGE = "coverage"
    """The model's first or last layers are owned by no stage, or the number of ranges is wrong."""


@dataclass(frozen=True)
class RangeFault:
    """One fault in a list of ranges.

    Attributes:
        code: the kind of fault.
        message: one sentence that names the stage and the numbers.
        stage: the stage at fault, or None if the list as a whole is.
    """

    code: FaultCode
    message: str
    stage: int | None


def parse_range(text: str) -> LayerRange:
    """Parse one range: `0-8`, `[0-8]` or `0:8`, spaces allowed. `check_ranges` checks whether it fits a model.

    Raises:
        ZppError: (INVALID) the text is not of that form.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise invalid_error(
            f"{text!r} is not a layer range",
            "write START-END, for example 0-8 for layers 0 to 7; layers are counted from 0",
        )
    return LayerRange(int(match["start"]), int(match["end"]))


def reads_as_ranges(text: str) -> bool:
    """Whether a text has the form of one or more layer ranges, whatever their values."""
    return _RANGES.fullmatch(text.strip()) is not None


def split_range_words(words: Iterable[str]) -> list[str]:
    """Separate the ranges in command-line arguments: `["0-8,8-16", "16-24 24-32"]` contains four.

    A blank argument is returned as an empty string, so that an unset shell variable is reported as a fault and not
    ignored.
    """
    ranges: list[str] = []
    for word in words:
        tight = re.sub(r"\s*([-:])\s*|\s+(\])|(\[)\s+", r"\1\2\3", word)
        ranges += [part for part in re.split(r"[,\s]+", tight) if part] or [""]
    return ranges


def check_ranges(
    texts: Sequence[str], total_layers: int, num_stages: int | None = None
) -> tuple[list[LayerRange], list[RangeFault]]:
    """Check one range per stage, in order, against a model of `total_layers` layers.

    Args:
        texts: the ranges, in stage order.
        total_layers: number of layers of the model.
        num_stages: expected number of ranges; None for any.

    Returns:
        the ranges that could be parsed, and all faults: first those of single stages, then those between stages. Of
        more than `MAX_OVERLAPS` overlaps the first are listed. Without faults the ranges are a partition.

    Raises:
        ZppError: (INVALID) `total_layers` or `num_stages` is less than one, or there are more than `MAX_STAGES` stages.
    """
    _check_counts(total_layers, num_stages)
    _check_counts(total_layers, max(len(texts), 1))
    ranges: list[LayerRange] = []
    faults: list[RangeFault] = []
    sound: list[tuple[int, LayerRange]] = []
    for stage, text in enumerate(texts):
        try:
            layer_range = parse_range(text)
        except ZppError as fault:
            faults.append(RangeFault(FaultCode.FORMAT, f"stage {stage}: {fault.message}", stage))
            continue
        ranges.append(layer_range)
        range_fault = _range_fault(stage, layer_range, total_layers)
        if range_fault:
            faults.append(range_fault)
        if layer_range.count > 0:
            sound.append((stage, layer_range))
    faults += _order_faults(sound)
    faults += _overlap_faults(sound)
    faults += _gap_faults(sound, total_layers)
    if num_stages is not None and len(texts) != num_stages:
        message = f"{len(texts)} layer ranges are given for {num_stages} stages: give one range a stage"
        faults.append(RangeFault(FaultCode.COVERAGE, message, None))
    return ranges, faults


def even_partition(total_layers: int, num_stages: int) -> Partition:
    """Divide the layers among the stages as vLLM does by default.

    The rule is that of `vllm.distributed.utils.get_pp_indices` (vLLM 0.32): layers left over after an even division go,
    one each, to the stages just before the last, because the last stage also has the final norm and the LM head. The
    first stage, which has the embedding, gets an extra layer only if there are enough for all stages but the last.

    Raises:
        ZppError: (INVALID) there are more stages than layers or than `MAX_STAGES`, or less than one of either.
    """
    _check_counts(total_layers, num_stages)
    if num_stages > total_layers:
        raise invalid_error(
            f"{num_stages} stages are more than the model's {_count(total_layers)}: every stage needs at least one",
            f"use --num-stages {total_layers} or fewer",
        )
    share, left = divmod(total_layers, num_stages)
    last = num_stages - 1
    counts = [share + (last - left <= stage < last) for stage in range(num_stages)]
    return tuple(LayerRange(start, end) for start, end in pairwise(accumulate(counts, initial=0)))


def resolve_partition(
    total_layers: int, num_stages: int | None = None, ranges: Sequence[str] | None = None
) -> Partition:
    """Return the partition a user requests: the given ranges (`num_stages` must match), or even over `num_stages`.

    Raises:
        ZppError: (INVALID) the ranges or counts are invalid, with all faults; (USAGE) neither is given.
    """
    if ranges:
        parsed, faults = check_ranges(ranges, total_layers, num_stages)
        if faults:
            messages = [fault.message for fault in faults[:MAX_FAULTS_IN_MESSAGE]]
            if len(faults) > MAX_FAULTS_IN_MESSAGE:
                messages.append(f"and {len(faults) - MAX_FAULTS_IN_MESSAGE} more")
            raise invalid_error(
                "the layer ranges do not cover the model: " + "; ".join(messages),
                f"`zpptool validate-ranges --total-layers {total_layers} --ranges ...` checks them separately",
            )
        return tuple(parsed)
    if num_stages is None:
        raise usage_error("neither --num-stages nor --ranges is given", "give --num-stages N, or --ranges 0-8 8-16 ...")
    return even_partition(total_layers, num_stages)


def vllm_layer_partition(partition: Partition) -> str:
    """Return the value of vLLM's VLLM_PP_LAYER_PARTITION for a partition: layer counts, for example `14,16`."""
    return ",".join(str(layer_range.count) for layer_range in partition)


def _check_counts(total_layers: int, num_stages: int | None) -> None:
    if total_layers < 1:
        raise invalid_error(f"a model has at least one layer, not {total_layers}")
    if num_stages is not None and num_stages < 1:
        raise invalid_error(f"a pipeline has at least one stage, not {num_stages}")
    if num_stages is not None and num_stages > MAX_STAGES:
        raise invalid_error(f"a pipeline has at most {MAX_STAGES} stages, not {num_stages}")


def _range_fault(stage: int, layer_range: LayerRange, total_layers: int) -> RangeFault | None:
    if layer_range.count == 0:
        return RangeFault(FaultCode.EMPTY, f"stage {stage}: {layer_range} holds no layer: the end is exclusive", stage)
    if layer_range.count < 0:
        return RangeFault(FaultCode.ORDER, f"stage {stage}: {layer_range} ends before it starts", stage)
    if layer_range.end > total_layers:
        message = f"stage {stage}: {layer_range} goes past the model, which has {_count(total_layers)}"
        return RangeFault(FaultCode.BOUNDS, f"{message} (the highest end is {total_layers})", stage)
    return None


def _order_faults(sound: Sequence[tuple[int, LayerRange]]) -> list[RangeFault]:
    return [
        RangeFault(FaultCode.ORDER, f"stage {stage}: {current} starts before stage {ahead}'s {earlier}", stage)
        for (ahead, earlier), (stage, current) in pairwise(sound)
        if current.start < earlier.start
    ]


def _overlap_faults(sound: Sequence[tuple[int, LayerRange]]) -> list[RangeFault]:
    """Find the stages that share layers. The work grows with the number of stages and of overlaps that are listed."""
    found = sorted(islice(_overlaps(sound), MAX_OVERLAPS + 1), key=lambda pair: (pair[0][0], pair[1][0]))
    faults = []
    for (ahead, earlier), (stage, current) in found[:MAX_OVERLAPS]:
        start, end = max(current.start, earlier.start), min(current.end, earlier.end)
        message = f"stage {stage}: {current} overlaps stage {ahead}'s {earlier}: both own {_named(start, end)}"
        faults.append(RangeFault(FaultCode.OVERLAP, message, stage))
    if len(found) > MAX_OVERLAPS:
        message = f"more than {MAX_OVERLAPS} pairs of stages overlap; {MAX_OVERLAPS} are listed"
        faults.append(RangeFault(FaultCode.OVERLAP, message, None))
    return faults


def _overlaps(
    sound: Sequence[tuple[int, LayerRange]],
) -> Iterator[tuple[tuple[int, LayerRange], tuple[int, LayerRange]]]:
    """Yield each pair of stages that share layers, the lower stage first."""
    active: list[tuple[int, LayerRange]] = []
    for item in sorted(sound, key=lambda item: item[1]):
        active = [other for other in active if other[1].end > item[1].start]
        for other in active:
            yield (other, item) if other[0] < item[0] else (item, other)
        active.append(item)


def _gap_faults(sound: Sequence[tuple[int, LayerRange]], total_layers: int) -> list[RangeFault]:
    """Find layers that no stage owns: a gap between two stages, or missing coverage at either end of the model."""
    faults: list[RangeFault] = []
    reached, before = 0, None
    for stage, current in sorted(sound, key=lambda item: item[1]):
        gap_end = min(current.start, total_layers)
        if reached < gap_end:
            missing = _named(reached, gap_end)
            if before is None:
                message = f"stage {stage}: {current} comes first, but no stage owns {missing} ahead of it"
                faults.append(RangeFault(FaultCode.COVERAGE, message, stage))
            else:
                message = f"stage {stage}: no stage owns {missing}, between stage {before} and {current}"
                faults.append(RangeFault(FaultCode.GAP, message, stage))
        if current.end > reached:
            reached, before = current.end, stage
    if reached < total_layers:
        last = "" if before is None else f"stage {before} is the furthest and ends at {reached}: "
        message = f"{last}no stage owns {_named(reached, total_layers)} of the model's {_count(total_layers)}"
        faults.append(RangeFault(FaultCode.COVERAGE, message, before))
    return faults


def _count(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"


def _named(start: int, end: int) -> str:
    return f"layer {start}" if end - start == 1 else f"layers {start} to {end - 1}"
