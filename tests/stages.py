# SPDX-License-Identifier: Apache-2.0
"""Stages as a user runs them: `zpptool run-stage` in a process of its own each, and nothing left of them afterwards.

They end at once when they are asked to, unless a test gives `--shutdown-timeout`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

END_S = 30
"""How long a pipeline may take to end, whatever ends it."""


Inside = Callable[[int, list[str]], list[str]]


def _here(_stage: int, words: list[str]) -> list[str]:
    return words


class Stage:
    """One `zpptool run-stage`, as in a terminal of its own.

    Args:
        inside: makes its command line one that runs on another host; here, if not given.

    Attributes:
        process: the command.
        log: what it prints.
    """

    def __init__(self, log: Path, *words: object, inside: Callable[[list[str]], list[str]] = list) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                inside([sys.executable, "-m", "zpptool", "run-stage", *map(str, words)]),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"ZPP_SHUTDOWN_TIMEOUT": "0", **os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._seen: set[psutil.Process] = set()

    def look(self) -> list[psutil.Process]:
        """The process and all that it has started; what was seen is looked for in `left_behind`."""
        try:
            root = psutil.Process(self.process.pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        self._seen.update(tree)
        return tree

    def worker(self) -> psutil.Process:
        """The process that computes."""
        return next(child for child in self.look() if any(word.endswith(".worker") for word in child.cmdline()))

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit code."""
        return self.process.wait(timeout_s)

    def left_behind(self) -> list[psutil.Process]:
        """What still runs of all that was seen."""
        return psutil.wait_procs(self._seen, timeout=2)[1]

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def free_base_port(count: int = 1) -> int:
    """A port that is free, with `count - 1` free ones behind it, below those that the system gives to clients."""
    for base in range(20000 + os.getpid() % 100 * 100, 32000):
        probes = [socket.socket() for _ in range(count)]
        try:
            for place, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + place))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return base
    raise AssertionError("no free ports")


@contextmanager
def started(directory: Path, commands: Sequence[Sequence[object]], inside: Inside = _here) -> Iterator[list[Stage]]:
    """One stage for each command line, started in this order; their logs go to `directory`.

    `inside` makes the command line of a stage, by its place, one that runs on that stage's host.
    """
    stages: list[Stage] = []
    try:
        for number, words in enumerate(commands):
            log = directory / f"stage-{number}.log"
            stages.append(Stage(log, *words, inside=partial(inside, number)))
        yield stages
    finally:
        for stage in stages:
            stage.look()
            stage.process.terminate()
        for stage in stages:
            try:
                stage.wait(2 * END_S)
            except subprocess.TimeoutExpired:
                stage.process.kill()
            for process in stage.left_behind():
                process.kill()


def wait_until_ready(base_url: str, stages: Sequence[Stage], timeout_s: float) -> None:
    """Block until the API answers; fails when a stage ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for stage in stages:
            assert stage.process.poll() is None, f"{stage.log} ends:\n{stage.text()[-3000:]}"
        try:
            if httpx.get(f"{base_url}/health", trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready in {timeout_s} s:\n" + "\n".join(stage.text()[-1000:] for stage in stages))


def completion(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """The first choice of a completion, greedy unless the body says otherwise."""
    response = client.post("/v1/completions", json={"temperature": 0, "max_tokens": 16, **body})
    assert response.status_code == httpx.codes.OK, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice
