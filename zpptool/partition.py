# SPDX-License-Identifier: Apache-2.0
"""Which stage owns which decoder layers: parse, partition, check.

A layer range is half-open, `[start, end)`, and written `0-8` (layers 0 to 7). A `Partition` that leaves this module
covers every layer of the model once, in the order of the stages, and gives every stage at least one layer. Whoever
offers ranges that do not is told every fault, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, combinations, pairwise
from typing import NamedTuple

from zpptool.errors import ZppError, invalid_error, usage_error

# Nine digits are more layers than any model has, and keep every number small enough to print.
_RANGE = re.compile(r"(?P<open>\[)?\s*(?P<start>[0-9]{1,9})\s*[-:]\s*(?P<end>[0-9]{1,9})\s*(?(open)\])")


class LayerRange(NamedTuple):
    """The decoder layers `start` to `end - 1`."""

    start: int
    end: int

    @property
    def count(self) -> int:  # type: ignore[override]  # how many layers, not tuple.count()
        """How many layers the range holds."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


Partition = tuple[LayerRange, ...]
"""The ranges of all stages, in order: they cover every layer once."""


class FaultCode(StrEnum):
    """The kinds of fault that a list of ranges can have; scripts rely on the values."""

    FORMAT = "format"
    """Not of the form START-END."""
    EMPTY = "empty"
    """Holds no layer."""
    BOUNDS = "bounds"
    """Goes past the model's last layer."""
    ORDER = "order"
    """Runs backwards, or starts before the stage ahead of it does."""
    OVERLAP = "overlap"
    """Shares layers with an earlier stage."""
    GAP = "gap"
    """Leaves layers between two stages to none."""
    COVERAGE = "coverage"
    """Leaves the model's first or last layers to no stage, or is not one range a stage."""


@dataclass(frozen=True)
class RangeFault:
    """One thing wrong with a list of ranges.

    Attributes:
        code: the kind of fault.
        message: one sentence that names the stage and the numbers.
        stage: the stage that is at fault, or None where it is the list as a whole.
    """

    code: FaultCode
    message: str
    stage: int | None


def parse_range(text: str) -> LayerRange:
    """Read one range: `0-8`, `[0-8]` or `0:8`, spaces allowed. Whether it fits a model is for `check_ranges` to say.

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


def split_range_words(words: Iterable[str]) -> list[str]:
    """Separate the ranges in the words of a command line: `["0-8,8-16", "16-24 24-32"]` holds four.

    A word that is all blank stays, as the empty text, so that a shell variable that was not set is seen as the fault
    it is and not dropped.
    """
    ranges: list[str] = []
    for word in words:
        tight = re.sub(r"\s*([-:])\s*|\s+(\])|(\[)\s+", r"\1\2\3", word)
        ranges += [part for part in re.split(r"[,\s]+", tight) if part] or [""]
    return ranges


def check_ranges(
    texts: Sequence[str], total_layers: int, num_stages: int | None = None
) -> tuple[list[LayerRange], list[RangeFault]]:
    """Check one range a stage, in order, against a model of `total_layers` layers.

    Returns:
        the ranges that could be read, and every fault: first those of single stages, then those between stages. No
        faults means that the ranges are a partition.

    Raises:
        ZppError: (INVALID) the model has no layer, or fewer than one stage is asked for.
    """
    _check_counts(total_layers, num_stages)
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
        fault_of_one = _fault_of_one(stage, layer_range, total_layers)
        if fault_of_one:
            faults.append(fault_of_one)
        if layer_range.count > 0:
            sound.append((stage, layer_range))
    faults += _order_faults(sound)
    faults += _overlap_faults(sound)
    faults += _hole_faults(sound, total_layers)
    if num_stages is not None and len(texts) != num_stages:
        message = f"{len(texts)} layer ranges are given for {num_stages} stages: give one range a stage"
        faults.append(RangeFault(FaultCode.COVERAGE, message, None))
    return ranges, faults


def even_partition(total_layers: int, num_stages: int) -> Partition:
    """Deal the layers out as vLLM does by default.

    The rule is that of `vllm.distributed.utils.get_pp_indices` (vLLM 0.32): what is left after even shares goes, one
    layer each, to the stages just before the last, because the last also holds the final norm and the LM head; while it
    lasts only for those in the middle, the first stage, which holds the embedding, gets none either.

    Raises:
        ZppError: (INVALID) there are more stages than layers, or fewer than one of either.
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
    """The partition a user asks for: by ranges (then `num_stages` must agree), or even over `num_stages`.

    Raises:
        ZppError: (INVALID) with all faults of the ranges, or of the counts; (USAGE) neither is given.
    """
    if ranges:
        parsed, faults = check_ranges(ranges, total_layers, num_stages)
        if faults:
            raise invalid_error(
                "the layer ranges do not cover the model: " + "; ".join(fault.message for fault in faults),
                f"`zpptool validate-ranges --total-layers {total_layers} --ranges ...` checks them alone",
            )
        return tuple(parsed)
    if num_stages is None:
        raise usage_error("it is not said how to cut the model", "give --num-stages N, or --ranges 0-8 8-16 ...")
    return even_partition(total_layers, num_stages)


def vllm_layer_partition(partition: Partition) -> str:
    """The value of vLLM's VLLM_PP_LAYER_PARTITION for this partition: layer counts, for example `14,16`."""
    return ",".join(str(layer_range.count) for layer_range in partition)


def _check_counts(total_layers: int, num_stages: int | None) -> None:
    if total_layers < 1:
        raise invalid_error(f"a model has at least one layer, not {total_layers}")
    if num_stages is not None and num_stages < 1:
        raise invalid_error(f"a pipeline has at least one stage, not {num_stages}")


def _fault_of_one(stage: int, layer_range: LayerRange, total_layers: int) -> RangeFault | None:
    if layer_range.count == 0:
        return RangeFault(FaultCode.EMPTY, f"stage {stage}: {layer_range} holds no layer: the end is not owned", stage)
    if layer_range.count < 0:
        return RangeFault(FaultCode.ORDER, f"stage {stage}: {layer_range} ends before it starts", stage)
    if layer_range.end > total_layers:
        message = f"stage {stage}: {layer_range} goes past the model, which has {_count(total_layers)}"
        return RangeFault(FaultCode.BOUNDS, f"{message} (the highest end is {total_layers})", stage)
    return None


def _order_faults(sound: Sequence[tuple[int, LayerRange]]) -> list[RangeFault]:
    return [
        RangeFault(FaultCode.ORDER, f"stage {stage}: {own} starts before stage {ahead}'s {theirs}", stage)
        for (ahead, theirs), (stage, own) in pairwise(sound)
        if own.start < theirs.start
    ]


def _overlap_faults(sound: Sequence[tuple[int, LayerRange]]) -> list[RangeFault]:
    faults = []
    for (ahead, theirs), (stage, own) in combinations(sound, 2):
        start, end = max(own.start, theirs.start), min(own.end, theirs.end)
        if start < end:
            message = f"stage {stage}: {own} overlaps stage {ahead}'s {theirs}: both own {_named(start, end)}"
            faults.append(RangeFault(FaultCode.OVERLAP, message, stage))
    return faults


def _hole_faults(sound: Sequence[tuple[int, LayerRange]], total_layers: int) -> list[RangeFault]:
    """The layers that no stage owns: a gap between two stages, or missing coverage at either end of the model."""
    faults: list[RangeFault] = []
    reached, before = 0, None
    for stage, own in sorted(sound, key=lambda item: item[1]):
        hole_end = min(own.start, total_layers)
        if reached < hole_end:
            missing = _named(reached, hole_end)
            if before is None:
                message = f"stage {stage}: {own} comes first, but no stage owns {missing} ahead of it"
                faults.append(RangeFault(FaultCode.COVERAGE, message, stage))
            else:
                message = f"stage {stage}: no stage owns {missing}, between stage {before} and {own}"
                faults.append(RangeFault(FaultCode.GAP, message, stage))
        if own.end > reached:
            reached, before = own.end, stage
    if reached < total_layers:
        last = "" if before is None else f"stage {before} is the furthest and ends at {reached}: "
        message = f"{last}no stage owns {_named(reached, total_layers)} of the model's {_count(total_layers)}"
        faults.append(RangeFault(FaultCode.COVERAGE, message, before))
    return faults


def _count(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"


def _named(start: int, end: int) -> str:
    return f"layer {start}" if end - start == 1 else f"layers {start} to {end - 1}"
