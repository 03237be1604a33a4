# SPDX-License-Identifier: Apache-2.0
"""`zpptool rebalance`: layers move between the stages of a running pipeline, and no request is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zpptool.cli.options import JsonOption, RangesOption, typed_ranges
from zpptool.cli.planned import FrontOption, RunDirOption, carry_out
from zpptool.cli.top import KeyOption
from zpptool.console import Console
from zpptool.errors import usage_error


def rebalance(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RANGES]...", help="More layer ranges, after those of --ranges.")
    ] = None,
    ranges: RangesOption = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="The plan that the stages were started from; it is rewritten."),
    ] = None,
    url: FrontOption = None,
    api_key: KeyOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move layers between the stages of a running pipeline, as many stages as there are, while it answers.

    The stages have to read the full checkpoint. Those of which something changes (with vLLM all, for the cache is laid
    out anew) leave together, load what is theirs now, and are taken in; answers under way wait for them and go on with
    the tokens that they would have had. What cannot be is refused before anything is touched: ranges that are no
    partition, stages of directories of their own, a stage whose memory does not hold its part of the cache.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.
    """
    from zpptool.layers import parse_range
    from zpptool.pipeline.ring.changes import Rebalance, whose
    from zpptool.plan import load_plan_file, repartitioned_plan, rewrite_plan

    console = Console(as_json=as_json)
    wanted = tuple(str(parse_range(text)) for text in typed_ranges(ranges, words))
    if not wanted:
        raise usage_error("which layers is each stage to own?", "Give --ranges 0-8 8-16 ..., one a stage.")
    request = Rebalance(whose("zpptool rebalance"), wanted)
    if plan_file is None:
        carry_out(request, url=url, api_key=api_key, run_dir=run_dir, console=console)
        return
    before = load_plan_file(plan_file)
    after = repartitioned_plan(before, wanted)
    carry_out(
        Rebalance(request.by, wanted, before.digest),
        url=url,
        api_key=api_key,
        run_dir=run_dir,
        console=console,
        prepare=lambda: rewrite_plan(plan_file, after),
        take_back=lambda: rewrite_plan(plan_file, before),
    )
