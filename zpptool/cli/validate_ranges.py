# SPDX-License-Identifier: Apache-2.0
"""`zpptool validate-ranges`: whether a list of layer ranges covers a model, each layer once, with every fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from zpptool.cli.options import (
    JsonOption,
    ModelOption,
    NumStagesOption,
    RangesOption,
    RevisionOption,
    TokenOption,
    TotalLayersOption,
    typed_ranges,
)
from zpptool.console import Console
from zpptool.errors import ExitCode, usage_error
from zpptool.partition import FaultCode, LayerRange, RangeFault, check_ranges, even_partition
from zpptool.sources.names import ModelName


def validate_ranges(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RANGES]...", help="More layer ranges, as after --ranges.")
    ] = None,
    ranges: RangesOption = None,
    total_layers: TotalLayersOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    num_stages: NumStagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check layer ranges: overlaps, gaps, bounds, order and form; every fault, not only the first.

    Without ranges, --num-stages N shows the default ranges. --model reads the number of layers from config.json and
    nothing else.
    """
    texts = typed_ranges(ranges, arguments)
    if not texts and num_stages is None:
        raise usage_error(
            "no layer ranges are given", "give --ranges 0-8 8-16 ..., or --num-stages N for the default ranges"
        )
    total = _total_layers(total_layers, ModelName(model, revision, token) if model is not None else None)
    if texts:
        read, faults = check_ranges(texts, total, num_stages)
    else:
        assert num_stages is not None
        read, faults = list(even_partition(total, num_stages)), []
    payload = {
        "valid": not faults,
        "total_layers": total,
        "ranges": [[item.start, item.end] for item in read],
        "faults": [{"code": fault.code, "message": fault.message, "stage": fault.stage} for fault in faults],
    }
    shown = texts or [str(item) for item in read]
    Console(as_json=as_json).result(payload, lambda out: _show(out, shown, read, faults, total))
    if faults:
        raise typer.Exit(ExitCode.INVALID)


def _total_layers(given: int | None, model: ModelName | None) -> int:
    from zpptool.checkpoint.stage_tensors import count_layers
    from zpptool.sources.opened import open_model

    if model is None:
        if given is None:
            raise usage_error("the number of layers is not known", "give --total-layers N or --model MODEL")
        return given
    with open_model(model) as opened:
        found = count_layers(opened.directory)
    if given not in (None, found):
        raise usage_error(
            f"--total-layers is {given}, but the config.json of {model.text} has {found} layers", "give one of the two"
        )
    return found


def _show(
    out: Console, texts: Sequence[str], read: Sequence[LayerRange], faults: Sequence[RangeFault], total: int
) -> None:
    at_fault = {fault.stage for fault in faults if fault.code is FaultCode.FORMAT}
    parsed = iter(read)
    rows: list[tuple[int, object, object]] = []
    for stage, text in enumerate(texts):
        if stage in at_fault:
            rows.append((stage, text, "?"))
        else:
            item = next(parsed)
            rows.append((stage, item, item.count))
    out.table(f"{total} layers in {len(texts)} stages", ("stage", "layers", "count"), rows, right=("stage", "count"))
    for fault in faults:
        out.line(f"{fault.code}: {fault.message}")
    out.line("valid" if not faults else "invalid")
