# SPDX-License-Identifier: Apache-2.0
"""Planned changes of a running pipeline: `zpptool rollout`, `zpptool rebalance` and `zpptool stage replace`.

Each command sends one request, through a front or to the head on this machine, and shows the answers until the change
is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.examples import epilog
from zpptool.cli.front_client import front_status, refuse_two_pipelines
from zpptool.cli.options import (
    DEFAULT_URL,
    ApiKeyOption,
    JsonOption,
    RangesOption,
    RequiredRewrittenPlanOption,
    RewrittenPlanOption,
    RunDirOption,
    UrlOption,
    typed_ranges,
)
from zpptool.console import Console
from zpptool.errors import ZppError, usage_error

if TYPE_CHECKING:
    from zpptool.admin.change_types import Answer, Request


def rollout(
    url: UrlOption = None, api_key: ApiKeyOption = None, run_dir: RunDirOption = None, as_json: JsonOption = False
) -> None:
    """Restart every stage of a running pipeline, one after the other, while it answers.

    Each stage leaves between two steps, is started again by its supervisor, and loads; answers under way wait for it
    and go on with the tokens that they would have had. The next stage leaves when the ring is complete and has computed
    a step. The head is not restarted, so the release has to stay the same. The command ends at the first stage that
    does not come back within the pipeline's --recovery-deadline, and Ctrl-C ends it after the stage that has left.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.
    """
    from zpptool.admin.change_types import Rollout, whose

    request = Rollout(by=whose("zpptool rollout"))
    _carry_out(request, url=url, api_key=api_key, run_dir=run_dir, console=Console(as_json=as_json))


def rebalance(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RANGES]...", help="More layer ranges, after those of --ranges.")
    ] = None,
    ranges: RangesOption = None,
    plan_file: RewrittenPlanOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move layers between the stages of a running pipeline, as many stages as there are, while it answers.

    The stages have to read the full checkpoint. Those whose layers change (with vLLM all, because the cache is laid out
    again) leave together, load their new layers, and rejoin; answers under way wait for them and go on with the tokens
    that they would have had. Refused before anything is changed: ranges that are not a partition, stages with
    directories of their own, a stage whose memory does not hold its part of the cache.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.
    """
    from zpptool.admin.change_types import Rebalance, whose
    from zpptool.config.plan import load_plan_file
    from zpptool.config.plan_changes import repartitioned_plan, rewrite_plan
    from zpptool.partition import parse_range

    console = Console(as_json=as_json)
    wanted = tuple(str(parse_range(text)) for text in typed_ranges(ranges, arguments))
    if not wanted:
        raise usage_error("no layer ranges are given", "Give --ranges 0-8 8-16 ..., one a stage.")
    request = Rebalance(whose("zpptool rebalance"), wanted)
    if plan_file is None:
        _carry_out(request, url=url, api_key=api_key, run_dir=run_dir, console=console)
        return
    before = load_plan_file(plan_file)
    after = repartitioned_plan(before, wanted)
    _carry_out(
        Rebalance(request.by, wanted, before.digest),
        url=url,
        api_key=api_key,
        run_dir=run_dir,
        console=console,
        prepare=lambda: rewrite_plan(plan_file, after),
        undo=lambda: rewrite_plan(plan_file, before),
    )


stage_app = typer.Typer(no_args_is_help=True)


@stage_app.callback()
def _stage() -> None:
    """Planned changes of one stage of a running pipeline."""


@stage_app.command("replace", epilog=epilog("stage replace"))
def replace_stage(
    stage: Annotated[int, typer.Argument(metavar="K", help="Which stage; not 0, which runs beside the head.")],
    to: Annotated[
        str, typer.Option("--to", metavar="HOST[:PORT]", help="Its new host; the port stays the same if not given.")
    ],
    plan_file: RequiredRewrittenPlanOption,
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", min=0, help="Seconds to wait for the new stage to ask to join.")
    ] = 600.0,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a stage to another host while the pipeline answers. To be run on the head's machine.

    The plan is rewritten, and the command to run on HOST is shown. Nothing else is changed until the new stage asks to
    join; then the old one leaves and ends, and its receiver connects to HOST. Answers under way wait until the new
    stage has loaded, and go on with the tokens that they would have had. HOST needs the stage's key file and its
    weights.

    If the new stage does not ask in time, or on Ctrl-C before it has, the plan is restored.
    """
    from zpptool.admin.change_types import Replace, whose
    from zpptool.config.plan import load_plan_file
    from zpptool.config.plan_changes import host_and_port, moved_plan, rewrite_plan
    from zpptool.deploy.shell_commands import stage_command

    console = Console(as_json=as_json)
    before = load_plan_file(plan_file)
    after = moved_plan(before, stage, *host_and_port(to))
    place = after.stages[stage]
    show = console.note if as_json else console.line

    def prepare() -> None:
        rewrite_plan(plan_file, after)
        show(f"wrote {plan_file}; on {place.host}, beside a copy of it:")
        show(f"  {stage_command(plan_file, place)}")

    _carry_out(
        Replace(whose("zpptool stage replace"), stage, place.bind, before.digest, wait),
        url=None,
        api_key=None,
        run_dir=run_dir,
        console=console,
        prepare=prepare,
        undo=lambda: rewrite_plan(plan_file, before),
        look_for_front=False,
    )


def _carry_out(
    request: Request,
    *,
    url: str | None,
    api_key: str | None,
    run_dir: Path | None,
    console: Console,
    prepare: Callable[[], None] = lambda: None,
    undo: Callable[[], None] = lambda: None,
    look_for_front: bool = True,
) -> None:
    """Request a change and wait until it is complete: print a line for each event, or one JSON object.

    Args:
        request: the change.
        url: of the front to ask; None to look for the default one, then for the head on this machine.
        api_key: for the front.
        run_dir: directory of the status socket of the head to ask; None to look for it.
        console: prints the events.
        prepare: called when the change is accepted, before anything is changed.
        undo: called when the command ends before anything was changed.
        look_for_front: whether the request may go through a front.

    Raises:
        ZppError: (ADDRESS) there is no front or head to ask; otherwise the reason why the change is not complete.
        KeyboardInterrupt: the user has interrupted the command.
    """
    from zpptool.admin.change_types import Accepted, Outcome, Progress

    refuse_two_pipelines(url, run_dir)
    changed: list[dict[str, Any]] = []
    begun = False
    try:
        for replica, answer in _answers(request, url, api_key, run_dir, look_for_front):
            prefix = f"{replica}: " if replica else ""
            if isinstance(answer, Outcome):
                answer.raise_fault()
                outcome = {"done": answer.text, "stages": changed}
                console.result(outcome, lambda out: out.line(f"{prefix}{answer.text}"))  # noqa: B023 - printed at once
                return
            if isinstance(answer, Accepted):
                prepare()
            if isinstance(answer, Progress):
                begun = True
            if isinstance(answer, Progress) and answer.stage is not None:
                own = {"stage": answer.stage, "pid": answer.pid, "took_s": answer.took_s}
                changed.append({"replica": replica, **own} if replica else own)
            if console.as_json:
                console.note(prefix + answer.text)
            else:
                console.line(prefix + answer.text)
    except KeyboardInterrupt:
        console.warn(
            "this command has ended, the pipeline has not: a stage that was asked to leave comes back, and answers go"
            " on; no other stage is asked to leave. zpptool status shows it"
            if begun
            else "nothing was changed"
        )
        if not begun:
            undo()
        raise
    except ZppError as fault:
        if not begun:
            undo()
        raise fault.with_details({"stages": changed}) from fault


def _answers(
    request: Request, url: str | None, api_key: str | None, run_dir: Path | None, look_for_front: bool
) -> Iterator[tuple[str, Answer]]:
    """The answers, each with the name of its pipeline behind a front; empty where there is one pipeline."""
    from zpptool.admin.change_types import ask
    from zpptool.admin.status_client import the_status_path
    from zpptool.ring.status import CHANGE_SUFFIX

    if look_for_front and run_dir is None and _has_front(url, api_key):
        from zpptool.serve.changes_api import ask_front

        yield from ask_front(url or DEFAULT_URL, api_key, request)
        return
    path = the_status_path(run_dir).with_suffix(CHANGE_SUFFIX)
    for answer in ask(path, request):
        yield "", answer


def _has_front(url: str | None, api_key: str | None) -> bool:
    """Whether a front answers, at the default address if none is given."""
    return front_status(url or DEFAULT_URL, api_key, required=url is not None) is not None
