# SPDX-License-Identifier: Apache-2.0
"""The only printer: data goes to stdout, everything else to stderr.

With `--json` a command prints exactly one object, which holds `schema_version`, and nothing else on stdout. rich is
imported where a table or a bar is drawn, so that a command that draws none starts quickly.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from zpptool.errors import ZppError

SCHEMA_VERSION = 1
PLAIN_PROGRESS_INTERVAL_S = 5.0
_logger = logging.getLogger(__name__)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
PIPE_WIDTH = 200
"""How wide a table may be where it is not drawn on a terminal."""


class Console:
    """Where one command prints.

    Args:
        as_json: print results as one JSON object instead of tables.
        quiet: print results and errors only: no notes, no progress.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, payload: Mapping[str, Any], human: Callable[[Console], None]) -> None:
        """Print a command's result: `payload` as JSON, or whatever `human` prints through this console."""
        if self.as_json:
            print(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2), flush=True)
        else:
            human(self)

    def line(self, text: str = "") -> None:
        """One line of a human result, on stdout."""
        print(plain(text), flush=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()
    ) -> None:
        """A table of a human result, on stdout: drawn in full width in a pipe, so that no cell is cut.

        Args:
            title: stands above the table; empty for none.
            columns: the headings.
            rows: cells, turned to text with `str`.
            right: the headings of the columns whose cells are flush right.
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
        """A line about what is going on, on stderr."""
        if not self.quiet:
            _logger.info("%s", plain(text))

    def warn(self, text: str) -> None:
        """A line that the user should read even when quiet, on stderr."""
        _logger.warning("%s", plain(text))

    def error(self, fault: ZppError) -> None:
        """The one rendering of a fault: on stderr for people, and with --json also as the one object on stdout."""
        hint = plain(fault.hint) if fault.hint else None
        _logger.error("%s", plain(fault.message), extra={"hint": hint, "exit_code": int(fault.exit_code)})
        if self.as_json:
            payload = {"schema_version": SCHEMA_VERSION, **fault.beside, "error": fault.as_json()}
            print(json.dumps(payload, indent=2), flush=True)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of a long work on stderr: a bar on a terminal, a plain line now and then in a pipe.

        Yields:
            a function, safe to call from any thread, that is told how many more bytes are done.
        """
        if self.quiet:
            yield lambda _more: None
        elif sys.stderr.isatty():
            yield from _bar(label, total_bytes)
        else:
            yield from _lines(label, total_bytes)


def plain(text: str) -> str:
    """The text as a terminal may show it: names of files and tensors are strangers', and could move its cursor."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


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
    began = shown = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal done, shown
        done += more
        now = time.monotonic()
        if now - shown >= PLAIN_PROGRESS_INTERVAL_S and done:
            shown = now
            rate = done / (now - began)
            left = max(total_bytes - done, 0) / rate
            reached = f"{human_bytes(done)} of {human_bytes(total_bytes)}"
            print(f"{label}: {reached}, {human_bytes(round(rate))}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance


def human_bytes(count: int) -> str:
    """A byte count as people read it, in binary units: `1536` is `1.5 KiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
