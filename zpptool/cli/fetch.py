# SPDX-License-Identifier: Apache-2.0
"""`zpptool fetch`: put a model, or one stage of it, on this machine before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from zpptool.console import Console
from zpptool.errors import usage_error


def fetch(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="org/name on the Hugging Face Hub, the URL of a directory, or a path."),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="K", min=0, help="Write only this stage of the split, from 0.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", metavar="OUT", help="Write OUT/stage_K; into the store if not given."),
    ] = None,
    model_digest: Annotated[
        str | None,
        typer.Option(
            "--model-digest",
            metavar="DIGEST",
            help="The plan's: a stage of it that is in OUT is kept, and MODEL is not asked.",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Remove this stage of other splits beside OUT first: for a volume that holds one."
        ),
    ] = False,
    no_lock: NoLockOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model, or with --stage only the tensors of one stage, and print where it is.

    What is here already is not fetched again, and no request is made. An interrupted fetch is resumed. A whole model
    goes into the Hugging Face cache, a stage into the store: ZPP_CACHE, else ~/.cache/zpptool.
    """
    from zpptool.config.resolve import stage_partition
    from zpptool.partition import Partition
    from zpptool.sources.located import stage_model, whole_model
    from zpptool.sources.names import ModelName
    from zpptool.sources.volume import fetch_to_volume

    console = Console(as_json=as_json, quiet=quiet)
    text, typed = model_and_ranges(ctx, model, arguments, ranges)
    named = ModelName(text, revision, token)
    if stage is None and (output_dir is not None or typed or num_stages is not None):
        raise usage_error("which stage is to be fetched?", "Give --stage K, or zpptool split for all stages.")
    if output_dir is None and (model_digest is not None or replace or no_lock):
        raise usage_error(
            "--model-digest, --replace and --no-lock are for a directory of your own", "Give --output-dir OUT."
        )

    def choose(num_layers: int) -> Partition:
        assert stage is not None
        return stage_partition(num_layers, stage, num_stages=num_stages, layer_range=None, ranges=typed)

    if stage is None:
        found = whole_model(named, console)
    elif output_dir is None:
        found = stage_model(named, stage, choose, console)
    else:
        found = fetch_to_volume(
            named,
            stage,
            choose,
            output_dir,
            ranges=typed,
            model_digest=model_digest,
            replace=replace,
            lock=not no_lock,
            console=console,
        )
    payload = {"directory": str(found.directory), "source": found.source or None, "stage": stage}
    console.result(payload, lambda out: out.line(str(found.directory)))
