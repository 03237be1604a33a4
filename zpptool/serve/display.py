# SPDX-License-Identifier: Apache-2.0
"""The state of all stages on stderr: a live table on a terminal, or a log line for each change.

A closed terminal, or a pipe without a reader, does not stop serving: such write errors are ignored.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zpptool.console import Console
from zpptool.errors import ZppError
from zpptool.places import place_name
from zpptool.plain_text import plain
from zpptool.ring.status import COMPUTING, READY
from zpptool.serve.pipeline_status import stage_phase
from zpptool.supervisor.pipeline_view import PipelineView

if TYPE_CHECKING:
    from rich.table import Table

LOGGED_PERCENTAGES = ("loading 25%", "loading 50%", "loading 75%")
"""The loading phases that get a log line."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One stage on the display.

    Attributes:
        pipeline: the pipeline's name.
        stage: its index.
        layers: its range, as text.
        pid: of its process; None where none runs.
        phase: what it is doing, for people.
    """

    pipeline: str
    stage: int
    layers: str
    pid: int | None
    phase: str


def rows_of(name: str, view: PipelineView) -> list[Row]:
    """The rows of a pipeline's stages. A stage that computes is shown as ready: otherwise every step would be a
    change."""
    pids = {process.name: process.pid for process in view.processes}
    rows = []
    for spec in view.specs:
        phase = stage_phase(view, spec.stage)
        shown = READY if phase == COMPUTING else phase
        rows.append(Row(name, spec.stage, str(spec.layers), pids.get(place_name(spec.stage)), shown))
    return rows


class Display(Protocol):
    """Shows the state of all stages."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show the current state."""
        ...

    def announce(self, text: str) -> None:
        """Print the command's result, one line on stdout."""
        ...

    def close(self) -> None:
        """Stop showing."""
        ...


def display_for(console: Console) -> Display:
    """A live table where stderr is a terminal, else log lines."""
    return LiveDisplay(console) if sys.stderr.isatty() and not console.quiet else LineDisplay(console)


class LineDisplay:
    """Logs a line for each change.

    Args:
        console: prints the command's result.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[tuple[str, int], str] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Log the phases that have changed since the last call; of the loading percentages only the first and
        `LOGGED_PERCENTAGES`."""
        for row in rows:
            place = (row.pipeline, row.stage)
            skipped = row.phase.startswith("loading ") and row.phase not in LOGGED_PERCENTAGES
            if self._shown.get(place) == row.phase or (skipped and self._shown.get(place, "").startswith("loading")):
                continue
            self._shown[place] = row.phase
            pid = f", pid {row.pid}" if row.pid is not None else ""
            phase = plain(row.phase)
            _logger.info("%s, stage %d (layers %s%s): %s", row.pipeline, row.stage, row.layers, pid, phase)

    def announce(self, text: str) -> None:
        """Print the command's result, one line on stdout."""
        with suppress(OSError, ZppError):
            self._console.line(text)

    def close(self) -> None:
        """Do nothing: no resource is open."""


class LiveDisplay:
    """Redraws a table; log records and other writes to stderr appear above it.

    Args:
        console: prints the command's result.
    """

    def __init__(self, console: Console) -> None:
        import rich.console
        import rich.live

        self._console = console
        self._rich = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = rich.live.Live(console=self._rich, auto_refresh=False, redirect_stdout=False, redirect_stderr=True)
        self._shown: tuple[Row, ...] = ()
        self._open = False

    def show(self, rows: Sequence[Row]) -> None:
        """Draw the table, where it has changed."""
        if tuple(rows) == self._shown:
            return
        self._shown = tuple(rows)
        with suppress(OSError):
            if not self._open:
                self._live.start()
                self._open = True
            self._live.update(_table(rows), refresh=True)

    def announce(self, text: str) -> None:
        """Print the command's result, one line: above the table where stdout is a terminal, because the table would be
        drawn over a line on stdout; else on stdout."""
        with suppress(OSError, ZppError):
            if sys.stdout.isatty():
                self._rich.print(text, markup=False)
            else:
                self._console.line(text)

    def close(self) -> None:
        """Stop redrawing; the last table stays on the terminal."""
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
