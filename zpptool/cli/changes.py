# SPDX-License-Identifier: Apache-2.0
"""What the commands of planned changes share: find the pipeline, ask it, show what comes about, and say what goes on
where the command ends before the change does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption, RangesOption, typed_ranges
from zpptool.cli.status import DEFAULT_URL, KeyOption
from zpptool.console import Console
from zpptool.errors import ExitCode, ZppError, usage_error

if TYPE_CHECKING:
    from zpptool.admin.change_types import Answer, Request

FrontOption = Annotated[str | None, typer.Option("--url", metavar="URL", help="A front's address.")]
RunDirOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="The private directory of stage 0, or the status socket in it; found out if there is one pipeline.",
    ),
]


def carry_out(
    request: Request,
    *,
    url: str | None,
    api_key: str | None,
    run_dir: Path | None,
    console: Console,
    prepare: Callable[[], None] = lambda: None,
    take_back: Callable[[], None] = lambda: None,
    look_for_front: bool = True,
) -> None:
    """Ask for a change and stay until it is over: a line for each thing that comes about, or one JSON object.

    Args:
        request: the change.
        url: of the front to ask; None to look for the default one, then for the head on this machine.
        api_key: the front's.
        run_dir: where the head to ask tells its status; None to look for it.
        console: prints.
        prepare: called when the change is accepted, before anything is touched.
        take_back: called when it ends before anything was touched.
        look_for_front: whether a front may hand it on.

    Raises:
        ZppError: (ADDRESS) there is nobody to ask; else why not all was done.
        KeyboardInterrupt: the user has had enough.
    """
    from zpptool.admin.change_types import Accepted, Outcome, Progress

    if url is not None and run_dir is not None:
        raise usage_error("--url and --run-dir name two pipelines", "Give one of them.")
    changed: list[dict[str, Any]] = []
    begun = False
    try:
        for replica, answer in _answers(request, url, api_key, run_dir, look_for_front):
            before = f"{replica}: " if replica else ""
            if isinstance(answer, Outcome):
                answer.raise_fault()
                outcome = {"done": answer.text, "stages": changed}
                console.result(outcome, lambda out: out.line(f"{before}{answer.text}"))  # noqa: B023 - printed at once
                return
            if isinstance(answer, Accepted):
                prepare()
            if isinstance(answer, Progress):
                begun = True
            if isinstance(answer, Progress) and answer.stage is not None:
                own = {"stage": answer.stage, "pid": answer.pid, "took_s": answer.took_s}
                changed.append({"replica": replica, **own} if replica else own)
            if console.as_json:
                console.note(before + answer.text)
            else:
                console.line(before + answer.text)
    except KeyboardInterrupt:
        console.warn(
            "this command has ended, the pipeline has not: a stage that was asked to leave comes back, and answers go"
            " on; no other one is asked. zpptool status shows it"
            if begun
            else "nothing was changed"
        )
        if not begun:
            take_back()
        raise
    except ZppError as fault:
        if not begun:
            take_back()
        fault.beside = {"stages": changed}
        raise


def _answers(
    request: Request, url: str | None, api_key: str | None, run_dir: Path | None, look_for_front: bool
) -> Iterator[tuple[str, Answer]]:
    """The answers, and of which pipeline behind a front each is; empty for the one there is."""
    from zpptool.admin.change_types import ask
    from zpptool.admin.status_client import the_status_path
    from zpptool.ring.status import CHANGE_SUFFIX

    if look_for_front and run_dir is None and _is_front(url or DEFAULT_URL, api_key, needed=url is not None):
        from zpptool.serve.changes_api import ask_front

        yield from ask_front(url or DEFAULT_URL, api_key, request)
        return
    path = the_status_path(run_dir).with_suffix(CHANGE_SUFFIX)
    for answer in ask(path, request):
        yield "", answer


def _is_front(url: str, api_key: str | None, *, needed: bool) -> bool:
    """Whether a front answers there; where one is not needed, a head on this machine will do."""
    import httpx

    from zpptool.admin.status_client import find_status_paths
    from zpptool.serve.status_view import fetch_status

    try:
        with httpx.Client(trust_env=False) as client:
            fetch_status(client, url, api_key)
    except ZppError as fault:
        if needed or fault.exit_code is not ExitCode.ADDRESS or not find_status_paths():
            raise
        return False
    return True


def rollout(
    url: FrontOption = None, api_key: KeyOption = None, run_dir: RunDirOption = None, as_json: JsonOption = False
) -> None:
    """Start every stage of a running pipeline anew, one after the other, while it answers.

    Each stage leaves between two steps, is started again by whoever keeps it up, and loads; answers under way wait for
    it and go on with the tokens that they would have had. The next one leaves when the ring is whole and has computed
    something. The head stays, and so has the release: versions have to agree. It ends at the first stage that does not
    come back in the pipeline's --recovery-deadline, and Ctrl-C ends it after the stage that has left.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.
    """
    from zpptool.admin.change_types import Rollout, whose

    request = Rollout(by=whose("zpptool rollout"))
    carry_out(request, url=url, api_key=api_key, run_dir=run_dir, console=Console(as_json=as_json))


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
    from zpptool.admin.change_types import Rebalance, whose
    from zpptool.config.plan import load_plan_file, repartitioned_plan, rewrite_plan
    from zpptool.partition import parse_range

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
    from zpptool.admin.change_types import Replace, whose
    from zpptool.config.plan import host_and_port, load_plan_file, moved_plan, rewrite_plan
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
