# SPDX-License-Identifier: Apache-2.0
"""`zpptool status`: how a pipeline fares, stage by stage and link by link, as a front or a head here tells."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.options import JsonOption
from zpptool.config.endpoints import DEFAULT_API_PORT
from zpptool.console import Console, human_bytes
from zpptool.errors import ExitCode, ZppError, usage_error
from zpptool.net.addresses import DEFAULT_HOST

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from zpptool.ring.status import RingStatus, StageStatus


def status(
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="A front's address.")] = None,
    api_key: KeyOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="The private directory of stage 0, or the status socket in it; found out if there is one pipeline.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0, help="Seconds to wait.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show every stage and link of the pipelines behind a front, or of the one whose head runs on this machine.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.

    Exit code 0: it is whole. 6: it is not, and the output says why. 5: nobody answers there.
    """
    if url is not None and run_dir is not None:
        raise usage_error("--url and --run-dir name two pipelines", "Give one of them.")
    told = _front_status(url or DEFAULT_URL, api_key, needed=url is not None) if run_dir is None else None
    if told is None:
        _head_status(run_dir, timeout, as_json)
        return
    Console(as_json=as_json).result(told, lambda out: show_front(out, told))
    if not told["ready"]:
        raise typer.Exit(ExitCode.STAGE)


def _front_status(url: str, api_key: str | None, *, needed: bool) -> dict[str, Any] | None:
    """What the front tells; None where there is no front, and it is not needed as there is a head on this machine."""
    import httpx

    from zpptool.admin.status_client import find_status_paths
    from zpptool.serve.status_view import fetch_status

    try:
        with httpx.Client(trust_env=False) as client:
            told = fetch_status(client, url, api_key)
    except ZppError as fault:
        if needed or fault.exit_code is not ExitCode.ADDRESS or not find_status_paths():
            raise
        return None
    told.pop("schema_version", None)
    return told


def _head_status(run_dir: Path | None, timeout: float, as_json: bool) -> None:
    import msgspec

    from zpptool.admin.status_client import read_status, the_status_path

    told = read_status(the_status_path(run_dir), timeout)
    Console(as_json=as_json).result(msgspec.to_builtins(told), lambda out: _show(out, told))
    if told.fault:
        raise typer.Exit(ExitCode.STAGE)


def _show(out: Console, told: RingStatus) -> None:
    out.line(f"run {told.run_id}, epoch {told.epoch}: {told.phase}{': ' + told.fault if told.fault else ''}")
    places = (told.head, *told.stages)
    out.table(
        "",
        ("stage", "phase", "layers", "host", "pid", "epoch", "memory", "steps", "still", "heard"),
        [_stage_row(place) for place in places],
        right=("pid", "epoch", "memory", "steps", "still", "heard"),
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
    return (
        _name(place),
        place.phase,
        "-".join(map(str, place.layers)) if place.layers else "-",
        place.host or "-",
        place.pid or "-",
        place.epoch,
        human_bytes(place.memory_bytes) if place.memory_bytes else "-",
        place.steps,
        f"{place.beat_age_s:.1f} s",
        f"{place.heard_age_s:.1f} s ago",
    )


def _link_row(place: StageStatus) -> tuple[object, ...]:
    link = place.link
    assert link is not None
    return (
        f"{_name(place)} -> {link.peer}",
        link.state,
        link.endpoint,
        link.epoch,
        "-" if link.rtt_ms is None else f"{link.rtt_ms:.2f} ms",
        link.queue,
        f"{link.messages_sent} ({human_bytes(link.bytes_sent)})",
        f"{link.messages_received} ({human_bytes(link.bytes_received)})",
        link.refused,
        link.last_error or "-",
    )


UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="The front's address.")]


KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", metavar="KEY", help="The front's API key."),
]


DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_API_PORT}"


def top(
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    every: Annotated[float, typer.Option("--every", metavar="S", min=0.1, help="Seconds between two looks.")] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Look so many times, then end.")
    ] = None,
) -> None:
    """Show the same again and again: live on a terminal, one table after the other in a pipe. Ctrl-C ends it."""
    import httpx

    from zpptool.serve.status_view import fetch_status

    looks = 0
    with httpx.Client(trust_env=False) as client, _screen() as show:
        while True:
            show(fetch_status(client, url, api_key))
            looks += 1
            if looks == count:
                return
            time.sleep(every)


@contextmanager
def _screen() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where `top` shows: the whole terminal, or plain tables."""
    if not sys.stdout.isatty():
        yield lambda told: show_front(Console(), told)
        return
    import rich.live

    with rich.live.Live(auto_refresh=False, screen=True) as live:
        yield lambda told: live.update(_drawn(told), refresh=True)


def show_front(out: Console, told: dict[str, Any]) -> None:
    """A front's status as plain tables."""
    from zpptool.serve.status_view import (
        LINK_COLUMNS,
        RIGHT,
        STAGE_COLUMNS,
        link_rows,
        reasons,
        stage_rows,
        summary,
    )

    out.table(summary(told), STAGE_COLUMNS, stage_rows(told), right=RIGHT)
    if links := link_rows(told):
        out.table("", LINK_COLUMNS, links, right=RIGHT)
    for reason in reasons(told):
        out.line(reason)


def _drawn(told: dict[str, Any]) -> Group:
    import rich.console
    import rich.text

    from zpptool.serve.status_view import LINK_COLUMNS, STAGE_COLUMNS, link_rows, reasons, stage_rows, summary

    return rich.console.Group(
        rich.text.Text(summary(told), style="bold"),
        _table(STAGE_COLUMNS, stage_rows(told)),
        *([_table(LINK_COLUMNS, links)] if (links := link_rows(told)) else []),
        *(rich.text.Text(line) for line in reasons(told)),
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
        table.add_row(*(rich.text.Text(text, style=style if place == 2 else "") for place, text in enumerate(row)))
    return table
