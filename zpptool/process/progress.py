# SPDX-License-Identifier: Apache-2.0
"""What a process of a pipeline is doing that its ring does not know, for whoever has started it: one small file each.

That is what comes before the ring, and how much of the weights is loaded; all else the ring tells (`ring.status`). A
process that nobody asked to tell says nothing, and one that cannot write goes on: a phase is news, never a reason to
fail. The words have a fixed width and are written at once, so a reader never meets half of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PHASE_VARIABLE = "ZPP_PHASE_FILE"
"""Names the file that a process, and those that it starts in turn, tell their phase in."""
WIDTH = 64

STARTING = "starting"
WAITING = "waiting for the other stages"
LOADING = "loading"
LOADED = "loaded"
"""The phase of a process that has come as far as doing its work."""


def report_phase(phase: str) -> None:
    """Say what this process is doing now."""
    path = os.environ.get(PHASE_VARIABLE)
    if not path:
        return
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, phase.encode()[:WIDTH].ljust(WIDTH), 0)
        finally:
            os.close(file)


def loading_teller(total_bytes: int) -> Callable[[int], None]:
    """A function that is told of every tensor's bytes as they are read, and says `loading 43%` when that changes."""
    done, told = 0, -1

    def read(more: int) -> None:
        nonlocal done, told
        done += more
        percent = 100 * done // max(total_bytes, 1)
        if percent != told:
            told = percent
            report_phase(f"{LOADING} {min(percent, 100)}%")

    read(0)
    return read


def read_phase(path: Path) -> str:
    """What the process that tells its phase in `path` said last; `STARTING` if nothing yet."""
    try:
        return path.read_bytes().decode(errors="replace").strip() or STARTING
    except OSError:
        return STARTING
