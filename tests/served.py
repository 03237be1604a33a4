# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve` as a user runs it, in a process of its own, and nothing left of it afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from zpptool.process.group import STOP_GRACE_S

What = TypeVar("What")
READY_S = 150
END_S = 2 * STOP_GRACE_S + 10


class Served:
    """One `zpptool serve`, as in a terminal of its own.

    Attributes:
        process: the command.
        errors: what it prints on stderr.
    """

    def __init__(self, directory: Path, *words: object) -> None:
        self.errors, self.output = directory / "stderr", directory / "stdout"
        with self.errors.open("wb") as errors, self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zpptool", "serve", "--port", "0", "--engine", "transformers", *map(str, words)],
                stdout=output, stderr=errors, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.seen: set[psutil.Process] = set()

    @property
    def url(self) -> str:
        """Where the front listens, as soon as it says so."""
        return self.find(r"the front listens at (\S+);")

    def find(self, pattern: str, within_s: float = READY_S) -> str:
        """The first group of what is printed and matches."""
        deadline = time.monotonic() + within_s
        while (found := re.search(pattern, self.text())) is None:
            assert time.monotonic() < deadline, f"no {pattern}:\n{self.text()}"
            assert self.process.poll() is None or re.search(pattern, self.text()), self.text()
            time.sleep(0.05)
        return found[1] if found.groups() else found[0]

    def text(self) -> str:
        return self.errors.read_text(errors="replace")

    def look(self) -> dict[str, psutil.Process]:
        """The processes of the pipeline by what they are: `stage 0`, `head`."""
        with suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))
        found = {}
        for process in self.seen:
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if any(word.endswith(".head") for word in words):
                    found["head"] = process
                for place in re.findall(r'"stage":(\d+)', words[-1] if "worker" in " ".join(words[:-1]) else ""):
                    found[f"stage {place}"] = process
        return found

    def until_ready(self, generation: int = 1, within_s: float = READY_S) -> None:
        self.find("ready after" if generation == 1 else f"ready again, generation {generation}", within_s)
        self.look()

    def left_behind(self) -> list[psutil.Process]:
        """What still runs of all that was ever seen."""
        return psutil.wait_procs(self.seen, timeout=END_S)[1]

    def close(self) -> None:
        self.look()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.left_behind():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for(true: Callable[[], What], within_s: float = READY_S) -> What:
    """What it is, as soon as it is true."""
    deadline = time.monotonic() + within_s
    while not (what := true()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
    return what
