# SPDX-License-Identifier: Apache-2.0
"""`zpptool stage`: planned changes of one stage of a running pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption
from zpptool.cli.planned import RunDirOption, carry_out
from zpptool.console import Console

stage_app = typer.Typer(no_args_is_help=True)


@stage_app.callback()
def _stage() -> None:
    """Planned changes of one stage of a running pipeline."""


@stage_app.command("replace", epilog=epilog("stage replace"))
def replace_stage(
    stage: Annotated[int, typer.Argument(metavar="K", help="Which stage; not 0, which stays with the head.")],
    to: Annotated[
        str, typer.Option("--to", metavar="HOST[:PORT]", help="Where it moves; the port stays if not given.")
    ],
    plan_file: Annotated[
        Path,
        typer.Option("--plan", metavar="FILE", help="The plan that the stages were started from; it is rewritten."),
    ],
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", min=0, help="Seconds to wait for the new stage to ask.")
    ] = 600.0,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a stage to another host while the pipeline answers. To be run on the head's machine.

    The plan is rewritten, and the command to run on HOST is shown. Nothing else is changed until the new stage asks for
    its place; then the old one leaves and ends, and whoever received from it receives from HOST. Answers under way wait
    until the new stage has loaded, and go on with the tokens that they would have had. HOST needs the stage's key file
    and its weights.

    If the new stage does not ask in time, or with Ctrl-C before it has, the plan is as it was.
    """
    from zpptool.deploy.byhand import stage_command
    from zpptool.pipeline.ring.changes import Replace, whose
    from zpptool.plan import host_and_port, load_plan_file, moved_plan, rewrite_plan

    console = Console(as_json=as_json)
    before = load_plan_file(plan_file)
    after = moved_plan(before, stage, *host_and_port(to))
    place = after.stages[stage]
    show = console.note if as_json else console.line

    def prepare() -> None:
        rewrite_plan(plan_file, after)
        show(f"wrote {plan_file}; on {place.host}, beside a copy of it:")
        show(f"  {stage_command(plan_file, place)}")

    carry_out(
        Replace(whose("zpptool stage replace"), stage, place.bind, before.digest, wait),
        url=None,
        api_key=None,
        run_dir=run_dir,
        console=console,
        prepare=prepare,
        take_back=lambda: rewrite_plan(plan_file, before),
        look_for_front=False,
    )
