# SPDX-License-Identifier: Apache-2.0
"""Output of a command: results on stdout; notes, warnings and errors as log records; progress on stderr.

With `--json` a command prints exactly one object with a `schema_version` on stdout and nothing else: its result, or the
error that ended it. `zpptool.log` formats the log records, and other modules log directly. rich is imported only where
something is drawn on a terminal, so that other commands start quickly.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from types import FrameType
from typing import Any

from zpptool.errors import ExitCode, ZppError
from zpptool.plain_text import plain

SCHEMA_VERSION = 1
PLAIN_PROGRESS_INTERVAL_S = 5.0
_logger = logging.getLogger(__name__)
COLUMN_GAP = "   "


@dataclass
class _Output:
    """What this process has to print, and has printed.

    Attributes:
        as_json: whether the command has --json, also from the environment or a file.
        printed: whether its one object was printed, or has begun to be.
    """

    as_json: bool = False
    printed: bool = False


_output = _Output()


def begin_output(*, as_json: bool) -> None:
    """Begin a command, whose errors `print_error` prints as an object if it has --json."""
    _output.as_json, _output.printed = as_json, False


def expect_json() -> None:
    """Record that the command has --json from a file of settings."""
    _output.as_json = True


def print_error(fault: ZppError) -> None:
    """Print an error as the one object on stdout if the command has --json and has printed none."""
    if _output.as_json and not _output.printed:
        _print_object({**fault.beside, "error": fault.as_json()})


def _print_object(payload: Mapping[str, Any]) -> None:
    _output.printed = True
    text = json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2)
    with _interrupts_postponed():
        _print(text)


@contextmanager
def _interrupts_postponed() -> Iterator[None]:
    """Postpone Ctrl-C or SIGTERM to the end of the block, so that what it prints is whole. A second one does not wait.

    Python runs signal handlers in the main thread only, so elsewhere nothing is to be postponed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    postponed: list[int] = []

    def postpone(number: int, _frame: FrameType | None) -> None:
        if postponed:  # nothing may be reading what is printed
            os._exit(ExitCode.INTERRUPTED)
        postponed.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, postpone)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        if postponed:
            signal.raise_signal(postponed[0])


def _print(text: str, end: str = "\n") -> None:
    """Print a text on stdout, with its end.

    Raises:
        ZppError: (FAILURE) the disk is full, or the device failed. BrokenPipeError: the pipe has no reader.
    """
    try:
        _write(f"{text}{end}")
    except BrokenPipeError:
        raise
    except OSError as cause:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # for Python's own flush at the end, which would fail again
        os.close(null)
        raise ZppError(f"standard output cannot be written to: {os.strerror(cause.errno or errno.EIO)}") from cause


def _write(text: str) -> None:
    """Write all of a text to stdout.

    `print` loses the rest of a long text if a signal is handled while it waits for the reader of a pipe (seen with
    CPython 3.11), so the bytes are written here.
    """
    stream = sys.stdout
    if stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        print(text, end="", flush=True)
        return
    stream.flush()
    left = memoryview(text.encode(stream.encoding, stream.errors or "strict"))
    while left:
        left = left[os.write(stream.fileno(), left) :]


class Console:
    """The output of one command.

    Args:
        as_json: print results as one JSON object instead of text.
        quiet: suppress notes and progress; results, warnings and errors remain.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        _output.as_json |= as_json

    def result(self, payload: Mapping[str, Any], human: Callable[[Console], None]) -> None:
        """Print a command's result on stdout.

        Args:
            payload: the result as a JSON object, printed with --json.
            human: prints the result as text through this console, otherwise.
        """
        if self.as_json:
            _print_object(payload)
        else:
            human(self)

    def line(self, text: str = "") -> None:
        """Print one line of a result on stdout."""
        _print(plain(text))

    def piece(self, text: str) -> None:
        """Print a piece of a result on stdout that may hold line breaks, as a model's answer; nothing with --json."""
        if not self.as_json and text:
            _print("\n".join(map(plain, text.split("\n"))), end="")

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()
    ) -> None:
        """Print a table of a result on stdout: fitted to a terminal, and as wide as its cells elsewhere.

        Args:
            title: printed above the table; empty for none.
            columns: the headings.
            rows: the cells of each row, converted with `str`.
            right: the headings of right-aligned columns.
        """
        if title:
            self.line(title)
        cells = [[plain(str(cell)) for cell in row] for row in rows]
        if sys.stdout.isatty():
            _draw(columns, cells, right)
        else:
            self.line("\n".join(_table_lines(columns, cells, right)))

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
        print_error(fault)

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

    @contextmanager
    def ticker(self) -> Iterator[Callable[[str], None]]:
        """Show a line on stderr that changes: redrawn on a terminal, now and then printed in a pipe.

        Yields:
            a function that takes the line as it is now.
        """
        if self.quiet:
            yield lambda _text: None
        elif sys.stderr.isatty():
            yield from _redrawn_line()
        else:
            yield from _occasional_line()


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """Draw a table on the terminal; long cells are folded."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(rich.text.Text, row))
    rich.console.Console(highlight=False).print(drawn)


def _table_lines(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]) -> list[str]:
    """Return the lines of a table whose columns are as wide as their cells; a cell of several lines gets as many."""
    rows = [list(zip_longest(*(cell.split("\n") for cell in row), fillvalue="")) for row in ([*columns], *cells)]
    lines = [line for row in rows for line in row]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    aligned = [
        COLUMN_GAP.join(
            " " * (width - _width(cell)) + cell if name in right else cell + " " * (width - _width(cell))
            for cell, width, name in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    rule = _rule() * (sum(widths) + len(COLUMN_GAP) * (len(widths) - 1))
    return [aligned[0], rule, *aligned[1:]]


def _width(text: str) -> int:
    """The width of a text on a terminal, in columns."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _rule() -> str:
    """The character of a horizontal line that stdout can show."""
    try:
        "─".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "─"


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


def _redrawn_line() -> Iterator[Callable[[str], None]]:
    import rich.console
    import rich.status
    import rich.text

    with rich.status.Status("", console=rich.console.Console(stderr=True)) as status:
        yield lambda text: status.update(rich.text.Text(plain(text)))


def _occasional_line() -> Iterator[Callable[[str], None]]:
    shown = -PLAIN_PROGRESS_INTERVAL_S
    last = ""

    def show(text: str) -> None:
        nonlocal shown, last
        now = time.monotonic()
        if now - shown >= PLAIN_PROGRESS_INTERVAL_S and text != last:
            shown, last = now, text
            print(plain(text), file=sys.stderr, flush=True)

    yield show


def human_bytes(count: int) -> str:
    """Format a byte count in binary units: `1536` as `1.5 KiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
