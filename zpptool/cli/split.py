# SPDX-License-Identifier: Apache-2.0
"""`zpptool split`: divide a checkpoint into stage directories, or show how it would be divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.checkpoint.mode import Mode
from zpptool.cli.options import (
    JsonOption,
    ModelOption,
    NoLockOption,
    NumStagesOption,
    QuietOption,
    RangesOption,
    RevisionOption,
    TokenOption,
    model_and_ranges,
)
from zpptool.console import Console, human_bytes

if TYPE_CHECKING:
    from zpptool.checkpoint.explain import TensorGroup
    from zpptool.checkpoint.splitplan import SplitPlan


def split(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="The checkpoint directory, a model on the Hugging Face Hub (org/name, hf://org/name@revision), or the "
            "URL of a directory (and more layer ranges, as after --ranges).",
        ),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", metavar="OUT", help="Will hold stage_0, stage_1, ...; one per stage."),
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="K", min=0, help="Write only this stage of the split, from 0.")
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="auto shares blocks with the source where the file system can (reflink) and copies else; "
            "hardlink links source files that one stage takes whole: never write to such a stage.",
        ),
    ] = Mode.AUTO,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Do not hash: faster, and validate then needs --model to prove a byte.")
    ] = False,
    no_sync: Annotated[
        bool,
        typer.Option("--no-sync", help="Do not wait until the weights are on the disk; cp does not wait either."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    drop_mtp: Annotated[
        bool, typer.Option("--drop-mtp", help="Leave out what predicts tokens past the next one (MTP, next-n layers).")
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Copy also what links lead to outside MODEL; refused without it, but for the Hub cache's own links.",
        ),
    ] = False,
    place: Annotated[
        list[str] | None,
        typer.Option(
            "--place",
            metavar="PATTERN=WHERE",
            help="Put the tensors with such names into the first or last stage, all stages, or stage K: "
            "--place 'projector.*=last'. May be given several times; the last match counts.",
        ),
    ] = None,
    aux: Annotated[
        bool,
        typer.Option(
            "--aux",
            help="Carry also what is beside the weights and may be a part of the model, in every stage: adapters, "
            "modules of sentence-transformers, .pt dictionaries. Without it, they are named as left out.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every group of tensors, the stages that hold it, and why.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the stages of an earlier split in OUT, once these are whole.")
    ] = False,
    no_lock: NoLockOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Split a Hugging Face checkpoint into one directory a stage, each of which loads on its own.

    Tensor bytes are copied as they are, layers keep their numbers, and every stage carries the full config and the
    tokenizer. Nothing is written unless all of it can be; the source is never written to.
    """
    from zpptool.checkpoint.explain import explain as explain_plan
    from zpptool.checkpoint.output_directory import unfinished
    from zpptool.checkpoint.placement import parse_placements
    from zpptool.checkpoint.split import target_of, write_split
    from zpptool.checkpoint.splitplan import plan_split
    from zpptool.checkpoint.streaming import CopyOptions
    from zpptool.errors import usage_error
    from zpptool.sources.names import ModelName
    from zpptool.sources.opened import open_model

    source, texts = model_and_ranges(ctx, model, arguments, ranges)
    dry_run = dry_run or (explain and output_dir is None)
    if output_dir is None and not dry_run:
        raise usage_error("no directory for the stages is named", "give --output-dir OUT, or --dry-run to see the plan")
    console = Console(as_json=as_json, quiet=quiet)
    with open_model(ModelName(source, revision, token)) as opened:
        if aux and opened.fetch is not None:
            raise usage_error("--aux needs the checkpoint on this machine", "download it, and name its directory")
        plan = plan_split(
            opened.directory,
            num_stages,
            texts or None,
            drop_prediction=drop_mtp,
            follow_links=follow_links,
            placements=parse_placements(place or ()),
            aux=aux,
        )
        groups = explain_plan(plan)
        if stage is not None:
            plan = plan.only(stage)
        for note in plan.notes:
            console.note(f"note: {note}")
        paths: Mapping[int, Path] = {}
        kept = False
        if output_dir is not None:
            paths = {stage.stage: output_dir / stage.directory_name for stage in plan.stages}
        if output_dir is not None and not dry_run:
            copying = CopyOptions(mode, hashed=not no_hash, synced=not no_sync, fetch=opened.fetch)
            try:
                with console.progress(f"splitting into {output_dir}", plan.nbytes) as advance:
                    kept = write_split(
                        plan,
                        output_dir,
                        force=force,
                        options=copying,
                        origin=opened.origin,
                        advance=advance,
                        lock=not no_lock,
                    ).unchanged
            except KeyboardInterrupt:
                if left := unfinished(target_of(plan, output_dir)):
                    console.note(f"finished files are in {left}: run the same command again to resume")
                raise
    payload = {**_payload(plan, paths, dry_run=dry_run), "kept": kept}
    if explain:
        payload["groups"] = [{**asdict(group), "stages": list(group.stages)} for group in groups]

    def show(out: Console) -> None:
        if explain:
            _show_groups(out, groups)
        _show(out, opened.name, plan, groups, paths)
        out.line("nothing was written (--dry-run)" if dry_run else _done(len(plan.stages), kept=kept))

    console.result(payload, show)


def _payload(plan: SplitPlan, paths: Mapping[int, Path], *, dry_run: bool) -> dict[str, Any]:
    return {
        "valid": True,
        "dry_run": dry_run,
        "num_layers": plan.structure.num_layers,
        "layer_prefix": plan.structure.layer_prefix,
        "stages": [
            {
                "stage": stage.stage,
                "path": str(paths[stage.stage]) if stage.stage in paths else None,
                "layers": [stage.layers.start, stage.layers.end],
                "tensors": stage.num_tensors,
                "bytes": stage.nbytes,
            }
            for stage in plan.stages
        ],
        "shared": [{"tensor": name, "reason": reason} for name, reason in plan.assignment.shared.items()],
        "dropped": [{"tensor": name, "reason": reason} for name, reason in plan.assignment.dropped.items()],
        "left_out": [{"path": path, "reason": reason} for path, reason in plan.left_out.items()],
        "faults": [],
        "notes": list(plan.notes),
    }


def _show_groups(out: Console, groups: Sequence[TensorGroup]) -> None:
    from zpptool.checkpoint.explain import stage_words

    rows = [
        (group.pattern, group.count, human_bytes(group.nbytes), stage_words(group.stages), group.reason)
        for group in groups
    ]
    out.table("tensors", ("tensors", "count", "size", "stages", "why"), rows, right=("count", "size"))
    out.line()


def _done(count: int, *, kept: bool) -> str:
    stages = "1 stage" if count == 1 else f"{count} stages"
    return f"{stages} of this split existed already, and were kept" if kept else f"wrote {stages}"


def _show(out: Console, name: str, plan: SplitPlan, groups: Sequence[TensorGroup], paths: Mapping[int, Path]) -> None:
    rows = [
        (stage.stage, stage.layers, stage.num_tensors, human_bytes(stage.nbytes), paths.get(stage.stage, ""))
        for stage in plan.stages
    ]
    title = f"{name}: {plan.structure.num_layers} layers ({plan.structure.layer_prefix})"
    columns = ("stage", "layers", "tensors", "size", "directory")
    out.table(title, columns, rows, right=("stage", "tensors", "size"))
    from zpptool.checkpoint.roles import Side

    for group in groups:
        if len(group.stages) > 1 and group.side is not Side.LAYER:
            out.line(f"in several stages: {group.pattern} ({group.reason})")
    for name, reason in plan.assignment.dropped.items():
        out.line(f"dropped: {name} ({reason})")
