# SPDX-License-Identifier: Apache-2.0
"""What a user sees while pipelines start and run: a live table on a terminal, a line for each change in a pipe.

Everything goes to stderr. A terminal that has gone, or a pipe that nobody reads, is no reason to stop serving.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zpptool.console import Console
from zpptool.places import place_name
from zpptool.ring.status import COMPUTING, READY
from zpptool.serve.pipeline_status import stage_phase
from zpptool.supervisor.pipeline_view import PipelineView

if TYPE_CHECKING:
    from rich.table import Table

PLAIN_STEPS = ("loading 25%", "loading 50%", "loading 75%")
"""Of all percentages, those that are worth a line."""


@dataclass(frozen=True)
class Row:
    """One stage on the display."""

    pipeline: str
    stage: int
    layers: str
    pid: int | None
    phase: str


def rows_of(name: str, view: PipelineView) -> list[Row]:
    """The stages of a pipeline, as they are displayed."""
    pids = {process.name: process.pid for process in view.processes}
    rows = []
    for spec in view.specs:
        phase = stage_phase(view, spec.stage)
        steady = READY if phase == COMPUTING else phase  # every step would be a change
        rows.append(Row(name, spec.stage, str(spec.layers), pids.get(place_name(spec.stage)), steady))
    return rows


class Display(Protocol):
    """Where the state of all pipelines is shown."""

    def show(self, rows: Sequence[Row]) -> None:
        """The stages now."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...

    def announce(self, text: str) -> None:
        """The line that is the command's result, on stdout."""
        ...

    def close(self) -> None:
        """Nothing more will be shown."""
        ...


def display_for(console: Console) -> Display:
    """A live table where stderr is a terminal, else lines."""
    return LiveDisplay(console) if sys.stderr.isatty() and not console.quiet else PlainDisplay(console)


class PlainDisplay:
    """A line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[tuple[str, int], str] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Say what has changed since the last time."""
        for row in rows:
            place = (row.pipeline, row.stage)
            quiet = row.phase.startswith("loading ") and row.phase not in PLAIN_STEPS
            if self._shown.get(place) == row.phase or (quiet and self._shown.get(place, "").startswith("loading")):
                continue
            self._shown[place] = row.phase
            pid = f", pid {row.pid}" if row.pid is not None else ""
            self.say(f"{row.pipeline}, stage {row.stage} (layers {row.layers}{pid}): {row.phase}")

    def say(self, text: str) -> None:
        """One line."""
        with suppress(OSError):
            self._console.note(text)

    def announce(self, text: str) -> None:
        """One line."""
        with suppress(OSError):
            self._console.line(text)

    def close(self) -> None:
        """Nothing is open."""


class LiveDisplay:
    """A table that is drawn again and again, with the lines that stay above it."""

    def __init__(self, console: Console) -> None:
        import rich.console
        import rich.live

        self._console = console
        self._rich = rich.console.Console(stderr=True, highlight=False)
        self._live = rich.live.Live(
            console=self._rich, auto_refresh=False, redirect_stdout=False, redirect_stderr=True
        )
        self._shown: tuple[Row, ...] = ()
        self._open = False

    def show(self, rows: Sequence[Row]) -> None:
        """Draw the table, if it has changed."""
        if tuple(rows) == self._shown:
            return
        self._shown = tuple(rows)
        with suppress(OSError):
            if not self._open:
                self._live.start()
                self._open = True
            self._live.update(_table(rows), refresh=True)

    def say(self, text: str) -> None:
        """One line, above the table."""
        with suppress(OSError):
            self._rich.print(text, markup=False, soft_wrap=True)

    def announce(self, text: str) -> None:
        """Where stdout is the same terminal, above the table: what anybody else writes there would be drawn over."""
        if sys.stdout.isatty():
            self.say(text)
        else:
            with suppress(OSError):  # of a terminal that has gone, nothing says any more that it was one
                self._console.line(text)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._open:
            with suppress(OSError):
                self._live.stop()


def _table(rows: Sequence[Row]) -> Table:
    import rich.box
    import rich.table
    import rich.text

    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, side in (("pipeline", "left"), ("stage", "right"), ("layers", "left"), ("pid", "right"), ("", "left")):
        drawn.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        colour = {"ready": "green", "not running": "red"}.get(row.phase, "yellow")
        phase = rich.text.Text(row.phase, style=colour)
        drawn.add_row(row.pipeline, str(row.stage), row.layers, "-" if row.pid is None else str(row.pid), phase)
    return drawn
