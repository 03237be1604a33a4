# SPDX-License-Identifier: Apache-2.0
"""Output of a command: results on stdout; notes, warnings and errors as log records; progress on stderr.

With `--json` a command prints exactly one object with a `schema_version` on stdout and nothing else. `zpptool.log`
formats the log records, and other modules log directly. rich is imported only where a table or a progress bar is drawn,
so that other commands start quickly.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from zpptool.errors import ZppError
from zpptool.plain_text import plain

SCHEMA_VERSION = 1
PLAIN_PROGRESS_INTERVAL_S = 5.0
_logger = logging.getLogger(__name__)
PIPE_WIDTH = 200
"""Maximum width, in columns, of a table that is not drawn on a terminal."""


class Console:
    """The output of one command.

    Args:
        as_json: print results as one JSON object instead of text.
        quiet: suppress notes and progress; results, warnings and errors remain.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, payload: Mapping[str, Any], human: Callable[[Console], None]) -> None:
        """Print a command's result on stdout.

        Args:
            payload: the result as a JSON object, printed with --json.
            human: prints the result as text through this console, otherwise.
        """
        if self.as_json:
            print(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2), flush=True)
        else:
            human(self)

    def line(self, text: str = "") -> None:
        """Print one line of a result on stdout."""
        print(plain(text), flush=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()
    ) -> None:
        """Print a table of a result on stdout. In a pipe it is `PIPE_WIDTH` columns wide, so that cells are not cut.

        Args:
            title: printed above the table; empty for none.
            columns: the headings.
            rows: the cells of each row, converted with `str`.
            right: the headings of right-aligned columns.
        """
        import rich.box
        import rich.console
        import rich.table
        import rich.text

        if title:
            self.line(title)
        drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in columns:
            drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(rich.text.Text(plain(str(cell))) for cell in row))
        if sys.stdout.isatty():
            rich.console.Console(highlight=False).print(drawn)
            return
        unstyled = io.StringIO()
        rich.console.Console(width=PIPE_WIDTH, file=unstyled, color_system=None).print(drawn)
        for line in unstyled.getvalue().splitlines():
            self.line(line.rstrip())

    def note(self, text: str) -> None:
        """Log a line at level info, unless quiet."""
        if not self.quiet:
            _logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Log a line at level warning, also when quiet."""
        _logger.warning("%s", text)

    def error(self, fault: ZppError) -> None:
        """Log an error, and with --json print it as the one object on stdout as well."""
        _logger.error("%s", fault.message, extra={"hint": fault.hint, "exit_code": int(fault.exit_code)})
        if self.as_json:
            payload = {"schema_version": SCHEMA_VERSION, **fault.beside, "error": fault.as_json()}
            print(json.dumps(payload, indent=2), flush=True)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of a long operation on stderr: a bar on a terminal, an occasional line in a pipe.

        Args:
            label: printed before the progress.
            total_bytes: total size of the operation in bytes.

        Yields:
            a function, callable from any thread, that takes the number of bytes just completed.
        """
        if self.quiet:
            yield lambda _more: None
        elif sys.stderr.isatty():
            yield from _bar(label, total_bytes)
        else:
            yield from _lines(label, total_bytes)


def _bar(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    import rich.console
    import rich.progress as rp

    columns = (
        rp.TextColumn("{task.description}"), rp.BarColumn(), rp.DownloadColumn(binary_units=True),
        rp.TransferSpeedColumn(), rp.TimeRemainingColumn(),
    )  # fmt: skip
    with rp.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total_bytes)
        yield lambda more: bar.advance(task, more)


def _lines(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    started = shown = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal done, shown
        done += more
        now = time.monotonic()
        if now - shown >= PLAIN_PROGRESS_INTERVAL_S and done:
            shown = now
            rate = done / (now - started)
            left = max(total_bytes - done, 0) / rate
            completed = f"{human_bytes(done)} of {human_bytes(total_bytes)}"
            print(f"{label}: {completed}, {human_bytes(round(rate))}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance


def human_bytes(count: int) -> str:
    """Format a byte count in binary units: `1536` as `1.5 KiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
