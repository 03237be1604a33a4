# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve` as a user runs it, in a process of its own, with every process ended afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from zpptool.process.group import STOP_GRACE_S

Value = TypeVar("Value")
READY_S = 150
END_S = 2 * STOP_GRACE_S + 10


class Served:
    """One run of `zpptool serve`.

    Attributes:
        process: the command's process.
        errors: the file with its stderr.
        output: the file with its stdout.
        seen: every descendant process that was ever observed.

    Args:
        directory: for the two files.
        arguments: of the command.
    """

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.errors, self.output = directory / "stderr", directory / "stdout"
        with self.errors.open("wb") as errors, self.output.open("wb") as output:
            command = [sys.executable, "-m", "zpptool", "serve", "--port", "0", "--engine", "transformers"]
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=output, stderr=errors, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.seen: set[psutil.Process] = set()

    @property
    def url(self) -> str:
        """The front's base URL; waits until the command has printed it."""
        return self.find(r"the front listens at (\S+);")

    def find(self, pattern: str, within_s: float = READY_S) -> str:
        """Wait for a match in stderr; return its first group, or all of it where the pattern has none."""
        deadline = time.monotonic() + within_s
        while (found := re.search(pattern, self.text())) is None:
            assert time.monotonic() < deadline, f"no {pattern}:\n{self.text()}"
            assert self.process.poll() is None or re.search(pattern, self.text()), self.text()
            time.sleep(0.05)
        return found[1] if found.groups() else found[0]

    def text(self) -> str:
        """Everything on stderr so far."""
        return self.errors.read_text(errors="replace")

    def look(self) -> dict[str, psutil.Process]:
        """The pipeline's processes by place: `stage 0`, `head`."""
        with suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))
        found = {}
        for process in self.seen:
            with suppress(psutil.NoSuchProcess):
                command_line = process.cmdline()
                if any(argument.endswith(".head") for argument in command_line):
                    found["head"] = process
                spec = command_line[-1] if "worker" in " ".join(command_line[:-1]) else ""
                for place in re.findall(r'"stage":(\d+)', spec):
                    found[f"stage {place}"] = process
        return found

    def until_ready(self, generation: int = 1, within_s: float = READY_S) -> None:
        """Wait until the command reports that the pipeline is ready in that generation."""
        self.find("ready after" if generation == 1 else f"ready again, generation {generation}", within_s)
        self.look()

    def left_behind(self) -> list[psutil.Process]:
        """The observed processes that still run after a grace period."""
        return psutil.wait_procs(self.seen, timeout=END_S)[1]

    def close(self) -> None:
        """Kill the command and every process that it has left."""
        self.look()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.left_behind():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def serving(directory: Path, *arguments: object) -> Iterator[Served]:
    """`zpptool serve` with these arguments, ready, for as long as the context lasts; see `Served`."""
    command = Served(directory, *arguments)
    try:
        command.until_ready()
        yield command
    finally:
        command.close()


def wait_for(condition: Callable[[], Value], within_s: float = READY_S) -> Value:
    """Wait until the condition's value is true, and return it; fail after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)
    return value
