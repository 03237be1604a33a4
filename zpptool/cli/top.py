# SPDX-License-Identifier: Apache-2.0
"""`zpptool top`: what a front tells of its pipelines, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.console import Console
from zpptool.ports import DEFAULT_API_PORT, DEFAULT_HOST

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

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

    from zpptool.serve.watch import fetch_status

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
    from zpptool.serve.watch import LINK_COLUMNS, RIGHT, STAGE_COLUMNS, link_rows, reasons, stage_rows, summary

    out.table(summary(told), STAGE_COLUMNS, stage_rows(told), right=RIGHT)
    if links := link_rows(told):
        out.table("", LINK_COLUMNS, links, right=RIGHT)
    for reason in reasons(told):
        out.line(reason)


def _drawn(told: dict[str, Any]) -> Group:
    import rich.console
    import rich.text

    from zpptool.serve.watch import LINK_COLUMNS, STAGE_COLUMNS, link_rows, reasons, stage_rows, summary

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

    from zpptool.serve.watch import RIGHT, WELL

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in RIGHT else "left")
    for row in rows:
        style = "green" if row[2] in WELL else "yellow"
        table.add_row(*(rich.text.Text(text, style=style if place == 2 else "") for place, text in enumerate(row)))
    return table
