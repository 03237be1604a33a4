# SPDX-License-Identifier: Apache-2.0
"""`zpptool validate`: prove a split; with range options, check the ranges as `validate-ranges` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.options import (
    JsonOption,
    NumStagesOption,
    QuietOption,
    RangesOption,
    RevisionOption,
    TokenOption,
    TotalLayersOption,
    on_command_line,
)
from zpptool.cli.validate_ranges import validate_ranges
from zpptool.console import Console, human_bytes
from zpptool.errors import ExitCode, usage_error

if TYPE_CHECKING:
    from zpptool.checkpoint.verify import Target, Verdict
    from zpptool.sources.names import ModelName


def validate(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="A split, one stage directory of it, or a plan."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The source checkpoint, to compare every byte with.")
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    ranges: RangesOption = None,
    total_layers: TotalLayersOption = None,
    num_stages: NumStagesOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove that a split holds every layer once and every tensor unchanged; with --model, byte for byte.

    Of a plan, check ranges, addresses, tensor-parallel sizes, the GPUs of stages that run on this machine, and the
    model if it is here.

    All faults are listed, each with its stage and tensor. With --ranges, --total-layers or --num-stages instead of
    TARGET, the layer ranges are checked as `zpptool validate-ranges` does.
    """
    range_options = {"ranges": ranges, "total_layers": total_layers, "num_stages": num_stages}
    if any(value and on_command_line(ctx, name) for name, value in range_options.items()):
        validate_ranges(arguments, ranges, total_layers, model, revision, token, num_stages, as_json)
        return
    if not arguments or len(arguments) != 1:
        raise usage_error(
            "name one split directory" if arguments else "nothing to validate is named",
            "zpptool validate OUT --model MODEL, or zpptool validate --ranges 0-8 8-16 --total-layers 16",
        )
    from zpptool.checkpoint.model_config import read_config
    from zpptool.checkpoint.processor import missing_processor
    from zpptool.checkpoint.verify import find_target, verify_split
    from zpptool.sources.located import whole_model
    from zpptool.sources.names import ModelName

    console = Console(as_json=as_json, quiet=quiet)
    named = ModelName(model, revision, token) if model is not None else None
    if Path(arguments[0]).is_file():
        _validate_plan(Path(arguments[0]), named, console)
        return
    target = find_target(Path(arguments[0]), whole_model(named, console).directory if named else None)
    if not target.whole:
        console.note(f"note: {target.directory} is one stage; only that one is checked, not the whole split")
    with console.progress(f"reading {target.directory}", target.nbytes) as advance:
        verdict = verify_split(target, advance)
    if verdict.unhashed and target.model is None:
        stages = ", ".join(map(str, verdict.unhashed))
        console.warn(f"the split was made with --no-hash: no byte of stage {stages} is checked; give --model")
    for stage in target.stages.values() if verdict.valid else ():
        lacking = missing_processor(stage, read_config(stage))
        if lacking is not None:
            console.warn(lacking)
            break
    console.result(_payload(target, verdict), lambda out: _show(out, target, verdict))
    if not verdict.valid:
        raise typer.Exit(ExitCode.INVALID)


def _payload(target: Target, verdict: Verdict) -> dict[str, Any]:
    return {
        "valid": verdict.valid,
        "whole": target.whole and verdict.complete,
        "bytes_proven": target.model is not None or not verdict.unhashed,
        "stages": [
            {
                "stage": stage,
                "path": str(target.stages[stage]),
                "layers": [manifest.layers.start, manifest.layers.end],
                "tensors": len(manifest.tensors),
                "bytes": manifest.nbytes,
            }
            for stage, manifest in verdict.manifests.items()
        ],
        "dropped": [{"tensor": name, "reason": reason} for name, reason in verdict.dropped.items()],
        "left_out": [{"path": path, "reason": reason} for path, reason in verdict.left_out.items()],
        "faults": [
            {"code": fault.code, "message": fault.message, "stage": fault.stage, "tensor": fault.tensor}
            for fault in verdict.faults
        ],
    }


def _show(out: Console, target: Target, verdict: Verdict) -> None:
    rows = [
        (stage, manifest.layers, len(manifest.tensors), human_bytes(manifest.nbytes), target.stages[stage])
        for stage, manifest in verdict.manifests.items()
    ]
    columns = ("stage", "layers", "tensors", "size", "directory")
    out.table("", columns, rows, right=("stage", "tensors", "size"))
    for name, reason in verdict.dropped.items():
        out.line(f"dropped: {name} ({reason})")
    for path, reason in verdict.left_out.items():
        out.line(f"not in the split: {path} ({reason})")
    for fault in verdict.faults:
        out.line(f"{fault.code}: {fault.message}")
    against = f", byte for byte as in {target.model.directory}" if target.model else ""
    what = "every layer once, every tensor accounted for" if target.whole else "one stage, as in its manifest"
    parts = "" if verdict.complete else "; not the whole model, for a part of it was left out of the split (above)"
    out.line(f"valid: {what}{against}{parts}" if verdict.valid else f"invalid: {len(verdict.faults)} fault(s)")


def _validate_plan(path: Path, model: ModelName | None, console: Console) -> None:
    """Print every reason why the plan cannot work; exit with `INVALID` if there is one."""
    from zpptool.config.gpu_faults import gpu_faults
    from zpptool.config.plan import load_plan_file, plan_faults
    from zpptool.config.port_probe import probed_hosts
    from zpptool.sources.located import cached_model
    from zpptool.sources.names import ModelName
    from zpptool.sources.opened import open_model

    plan = load_plan_file(path)
    if model is not None:
        with open_model(model) as opened:
            faults = plan_faults(plan, opened.directory)
        checked = True
    else:
        held = cached_model(ModelName(plan.model))
        checked = held is not None and held.directory.is_dir()
        if not checked:
            console.note(f"note: {plan.model} is not on this machine; give --model MODEL to check the model too")
        faults = plan_faults(plan, held.directory if held is not None and checked else None)
    places = [place.endpoints for place in plan.stages]
    hosts = probed_hosts(places) if not faults else []
    faults += gpu_faults(plan, [place.stage for place in places if place.host in hosts])
    payload = {
        "valid": not faults,
        "digest": plan.digest,
        "num_stages": len(plan.stages),
        "model_checked": checked,
        "faults": [{"message": fault} for fault in faults],
    }
    console.result(payload, lambda out: _show_plan_faults(out, len(plan.stages), faults))
    if faults:
        raise typer.Exit(ExitCode.INVALID)


def _show_plan_faults(out: Console, num_stages: int, faults: list[str]) -> None:
    for fault in faults:
        out.line(fault)
    out.line(f"invalid: {len(faults)} fault(s)" if faults else f"valid: a plan of {num_stages} stages")
