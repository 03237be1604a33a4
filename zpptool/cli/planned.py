# SPDX-License-Identifier: Apache-2.0
"""What the commands of planned changes share: find the pipeline, ask it, show what comes about, and say what goes on
where the command ends before the change does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.top import DEFAULT_URL
from zpptool.console import Console
from zpptool.errors import ExitCode, ZppError, usage_error

if TYPE_CHECKING:
    from zpptool.pipeline.ring.changes import Answer, Request

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
    from zpptool.pipeline.ring.changes import Accepted, Outcome, Progress

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
    from zpptool.pipeline.ring.changes import ask
    from zpptool.pipeline.ring.status import CHANGE_SUFFIX, the_status_path

    if look_for_front and run_dir is None and _is_front(url or DEFAULT_URL, api_key, needed=url is not None):
        from zpptool.serve.planned import ask_front

        yield from ask_front(url or DEFAULT_URL, api_key, request)
        return
    path = the_status_path(run_dir).with_suffix(CHANGE_SUFFIX)
    for answer in ask(path, request):
        yield "", answer


def _is_front(url: str, api_key: str | None, *, needed: bool) -> bool:
    """Whether a front answers there; where one is not needed, a head on this machine will do."""
    import httpx

    from zpptool.pipeline.ring.status import find_status_paths
    from zpptool.serve.watch import fetch_status

    try:
        with httpx.Client(trust_env=False) as client:
            fetch_status(client, url, api_key)
    except ZppError as fault:
        if needed or fault.exit_code is not ExitCode.ADDRESS or not find_status_paths():
            raise
        return False
    return True
