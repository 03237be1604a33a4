# SPDX-License-Identifier: Apache-2.0
"""A timeline in the Chrome trace format, shared by all processes of a host that are given the same file.

The invariant: between two writes the file is complete JSON. A process appends its events under the file's lock, in
place of the closing bracket. Times are microseconds of CLOCK_MONOTONIC, which all processes of a host share.
Open it at https://ui.perfetto.dev or in chrome://tracing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from zpptool.errors import usage_error

FLUSH_EVENTS = 4096
FLUSH_S = 1.0
"""Events older than this, in seconds, are written with the next one, so that a killed process loses few."""
_END = b"\n]\n"


class Timeline:
    """The events of one process.

    Args:
        file: created, or appended to.
        place: this process's row in the picture: its stage, or -1 for the head.
        name: the title of the row.

    Raises:
        ZppError: (USAGE) the file cannot be written, or is not a timeline.
    """

    def __init__(self, file: Path, place: int, name: str) -> None:
        self._file = file
        self._place = place + 1
        self._events: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        realtime_offset_ns = time.time_ns() - time.monotonic_ns()
        about = {"name": name, "pid": os.getpid(), "realtime_minus_monotonic_us": realtime_offset_ns / 1000}
        self._add({"name": "process_name", "ph": "M", "args": about})
        self._add({"name": "process_sort_index", "ph": "M", "args": {"sort_index": self._place}})
        self.flush()

    def span(self, what: str, began_ns: int, ended_ns: int, *, lane: int = 0, **about: str | int | float) -> None:
        """Record something that this process did.

        Args:
            what: its name.
            began_ns: on the clock of `time.monotonic_ns`.
            ended_ns: on the same clock.
            lane: spans that overlap without being nested need different lanes.
            about: details that are shown with it.
        """
        times = {"ts": began_ns / 1000, "dur": (ended_ns - began_ns) / 1000}
        self._add({"name": what, "ph": "X", "tid": lane, "args": about, **times})

    def flush(self) -> None:
        """Write the events that are not written yet.

        Raises:
            ZppError: (USAGE) the file cannot be written.
        """
        with self._lock:
            events, self._events = self._events, []
            self._flushed = time.monotonic()
        if not events:
            return
        body = b",\n".join(map(msgspec.json.encode, events))
        try:
            with self._file.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.truncate(size - len(_END))
                file.write((b",\n" if size else b"[\n") + body + _END)
        except OSError as cause:
            raise usage_error(f"the timeline cannot be written to {self._file}: {cause.strerror}") from cause

    def _add(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append({"pid": self._place, "tid": 0, **event})
            due = len(self._events) >= FLUSH_EVENTS or time.monotonic() - self._flushed >= FLUSH_S
        if due:
            self.flush()


def check_trace_file(file: Path) -> None:
    """Refuse a file that is not a timeline, before starting anything that would write into it.

    Raises:
        ZppError: (USAGE) it holds something else, or cannot be written.
    """
    try:
        with file.open("ab+") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(size - len(_END), 0))
            end = opened.read()
    except OSError as cause:
        raise usage_error(f"the timeline cannot be written to {file}: {cause.strerror}") from cause
    if size and end != _END:
        raise usage_error(f"{file} exists and is not a timeline of zpptool", "Name another --trace file.")
