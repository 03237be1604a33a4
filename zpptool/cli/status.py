# SPDX-License-Identifier: Apache-2.0
"""`zpptool status` and `zpptool top`: the state of every stage and link of a pipeline, once or repeatedly.

A front reports the state of the pipelines behind it; without a front, the head on this machine reports its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.front_client import front_status, refuse_two_pipelines
from zpptool.cli.options import DEFAULT_URL, ApiKeyOption, DefaultUrlOption, JsonOption, RunDirOption, UrlOption
from zpptool.console import Console, human_bytes
from zpptool.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from zpptool.ring.status import RingStatus, StageStatus

SILENT = "silent"
"""Shown for a stage, and its link, whose last report is too old."""


def status(
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    run_dir: RunDirOption = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0, help="Seconds to wait.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show every stage and link of the pipelines behind a front, or of the one whose head runs on this machine.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.

    Exit code 0: requests are taken. 6: they are not, and the output says why. 5: no front or head answers.
    """
    refuse_two_pipelines(url, run_dir)
    report = front_status(url or DEFAULT_URL, api_key, required=url is not None) if run_dir is None else None
    if report is None:
        _head_status(run_dir, timeout, as_json)
        return
    Console(as_json=as_json).result(report, lambda out: _show_front(out, report))
    if not report["ready"]:
        raise typer.Exit(ExitCode.STAGE)


def top(
    url: DefaultUrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    every: Annotated[float, typer.Option("--every", metavar="S", min=0.1, help="Seconds between two updates.")] = 1.0,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after so many updates.")] = None,
) -> None:
    """Show a front's status repeatedly: live on a terminal, one table after the other in a pipe. Ctrl-C ends it."""
    import httpx

    from zpptool.serve.status_view import fetch_status

    updates = 0
    with httpx.Client(trust_env=False) as client, _screen() as show:
        while True:
            show(fetch_status(client, url, api_key))
            updates += 1
            if updates == count:
                return
            time.sleep(every)


def _head_status(run_dir: Path | None, timeout: float, as_json: bool) -> None:
    """Show the status of the head on this machine; exit with `STAGE` if it takes no requests."""
    import msgspec

    from zpptool.admin.status_client import read_status, the_status_path
    from zpptool.ring.status import reason_not_serving

    ring = read_status(the_status_path(run_dir), timeout)
    Console(as_json=as_json).result(msgspec.to_builtins(ring), lambda out: _show_head(out, ring))
    if reason_not_serving(ring):
        raise typer.Exit(ExitCode.STAGE)


def _show_head(out: Console, ring: RingStatus) -> None:
    from zpptool.ring.status import reason_not_serving

    reason = reason_not_serving(ring)
    if ring.model:
        out.line(f"{ring.model}, {f'API at {ring.api}' if ring.api else 'no API'}")
    out.line(f"run {ring.run_id}, epoch {ring.epoch}: {ring.phase}{': ' + reason if reason else ''}")
    places = (ring.head, *ring.stages)
    out.table(
        "",
        ("stage", "phase", "layers", "host", "pid", "epoch", "memory", "steps", "busy", "still", "heard"),
        [_stage_row(place) for place in places],
        right=("pid", "epoch", "memory", "steps", "busy", "still", "heard"),
    )
    out.table(
        "",
        ("link", "state", "endpoint", "epoch", "rtt", "queue", "sent", "received", "refused", "last error"),
        [_link_row(place) for place in places if place.link is not None],
        right=("epoch", "rtt", "queue", "sent", "received", "refused"),
    )


def _name(place: StageStatus) -> str:
    return "head" if place.stage < 0 else f"stage {place.stage}"


def _stage_row(place: StageStatus) -> tuple[object, ...]:
    from zpptool.ring.status import is_silent

    return (
        _name(place),
        SILENT if place.pid and is_silent(place) else place.phase,
        "-".join(map(str, place.layers)) if place.layers else "-",
        place.host or "-",
        place.pid or "-",
        place.epoch,
        human_bytes(place.memory_bytes) if place.memory_bytes else "-",
        place.steps,
        "-" if place.busy is None else f"{place.busy:.0%}",
        f"{place.beat_age_s:.1f} s",
        f"{place.heard_age_s:.1f} s ago",
    )


def _link_row(place: StageStatus) -> tuple[object, ...]:
    from zpptool.ring.status import is_silent

    link = place.link
    assert link is not None
    return (
        f"{_name(place)} -> {link.peer}",
        SILENT if is_silent(place) else link.state,
        link.endpoint,
        link.epoch,
        "-" if link.rtt_ms is None else f"{link.rtt_ms:.2f} ms",
        link.queue,
        f"{link.messages_sent} ({human_bytes(link.bytes_sent)})",
        f"{link.messages_received} ({human_bytes(link.bytes_received)})",
        link.refused,
        link.last_error or "-",
    )


@contextmanager
def _screen() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows one status: on the whole terminal, or as plain tables where stdout is not a terminal."""
    if not sys.stdout.isatty():
        yield lambda report: _show_front(Console(), report)
        return
    import rich.live

    with rich.live.Live(auto_refresh=False, screen=True) as live:
        yield lambda report: live.update(_drawn(report), refresh=True)


def _show_front(out: Console, report: dict[str, Any]) -> None:
    """A front's status as plain tables."""
    from zpptool.serve.status_view import (
        LINK_COLUMNS,
        RIGHT,
        STAGE_COLUMNS,
        batch_lines,
        link_rows,
        reasons,
        stage_rows,
        summary,
    )

    out.table(summary(report), STAGE_COLUMNS, stage_rows(report), right=RIGHT)
    if links := link_rows(report):
        out.table("", LINK_COLUMNS, links, right=RIGHT)
    for line in (*reasons(report), *batch_lines(report)):
        out.line(line)


def _drawn(report: dict[str, Any]) -> Group:
    """A front's status as colored tables."""
    import rich.console
    import rich.text

    from zpptool.serve.status_view import (
        LINK_COLUMNS,
        STAGE_COLUMNS,
        batch_lines,
        link_rows,
        reasons,
        stage_rows,
        summary,
    )

    return rich.console.Group(
        rich.text.Text(summary(report), style="bold"),
        _table(STAGE_COLUMNS, stage_rows(report)),
        *([_table(LINK_COLUMNS, links)] if (links := link_rows(report)) else []),
        *(rich.text.Text(line) for line in (*reasons(report), *batch_lines(report))),
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    import rich.box
    import rich.table
    import rich.text

    from zpptool.serve.status_view import RIGHT, WELL

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in RIGHT else "left")
    for row in rows:
        style = "green" if row[2] in WELL else "yellow"
        table.add_row(*(rich.text.Text(text, style=style if column == 2 else "") for column, text in enumerate(row)))
    return table
