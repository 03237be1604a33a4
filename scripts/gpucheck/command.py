# SPDX-License-Identifier: Apache-2.0
"""Commands in process groups of their own, of which nothing is left when they end or their time is over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from gpucheck.check import Failed

ZPPTOOL = (sys.executable, "-m", "zpptool")
LOG_TAIL = 1200
"""How many characters of a log a failure shows."""


class Command:
    """A command that runs.

    Args:
        words: the command line.
        log: where its output goes.
        env: additions to the environment.
    """

    def __init__(self, words: Sequence[object], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in words], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, **env},
            )  # fmt: skip
        self._seen: set[psutil.Process] = set()

    def text(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of what it has printed."""
        return self.text()[-LOG_TAIL:]

    def find(self, pattern: str, within_s: float) -> str:
        """Wait for a match in the output; returns its first group.

        Raises:
            Failed: there is none in time, or the command has ended without one.
        """
        end = time.monotonic() + within_s
        while (found := re.search(pattern, self.text())) is None:
            ended = self.process.poll() is not None
            if (ended and not re.search(pattern, self.text())) or time.monotonic() > end:
                what = "it ended" if ended else f"{within_s:.0f} s passed"
                raise Failed(f"{what} without {pattern!r}: {self.tail()}")
            time.sleep(0.1)
        return found[1]

    def await_http(self, url: str, within_s: float) -> None:
        """Wait until a URL answers with 200.

        Raises:
            Failed: it does not in time, or the command has ended.
        """
        end = time.monotonic() + within_s
        while True:
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{url} did not answer in {within_s:.0f} s: {self.tail()}")
            time.sleep(0.5)

    def worker(self, stage: int) -> psutil.Process:
        """The process that computes a stage of `zpptool serve`.

        Raises:
            Failed: there is none.
        """
        for process in self._look():
            with suppress(psutil.NoSuchProcess):
                *words, last = process.cmdline()
                if any(word.endswith("worker") for word in words) and f'"stage":{stage}' in last:
                    return process
        raise Failed(f"there is no worker of stage {stage}: {self.tail()}")

    def close(self) -> None:
        """End the command and everything that it has started."""
        self._look()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._seen, timeout=20)
        self.process.wait()

    def _look(self) -> set[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            self._seen |= {own, *own.children(recursive=True)}
        return self._seen


def test_pipeline(words: Sequence[object], directory: Path, env: Mapping[str, str], limit_s: float) -> tuple[int, Any]:
    """Run `zpptool test-pipeline`.

    Returns:
        its exit code and its report; the end of its log where it wrote none.

    Raises:
        Failed: it does not end in time.
    """
    report = directory / "report.json"
    report.unlink(missing_ok=True)
    options = ("--report", report, "--log-dir", directory / "logs")
    command = Command((*ZPPTOOL, "test-pipeline", *options, *words), directory / "test-pipeline.log", env)
    try:
        code = command.process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"test-pipeline was not done in {limit_s:.0f} s: {command.tail()}") from None
    finally:
        command.close()
    return code, json.loads(report.read_text()) if report.is_file() else command.tail()
