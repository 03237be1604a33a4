# SPDX-License-Identifier: Apache-2.0
"""Child processes that need not import vLLM again: forks of a process that has, each with a log, all ended at exit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from zpptool.process.child import die_with_parent
from zpptool.process.environment import PARENT_VARIABLE

_POLL_S = 0.05


@dataclass
class Fork:
    """One child.

    Attributes:
        pid: its process id, and that of its process group, to which its own children belong.
        log: the file of its output.
        code: its exit code, negative for a signal; None while it runs.
    """

    pid: int
    log: Path
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Forks:
    """The children of one trial. Leaving the block kills them and their children."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._all: list[Fork] = []

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        for fork in self._all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(fork.pid, signal.SIGKILL)
            if fork.code is None:
                os.waitpid(fork.pid, 0)

    def start(self, name: str, body: Callable[[], None]) -> Fork:
        """Run `body` in a child. Its exit code is that of `body`: 0 if it returns, 1 if it raises."""
        log = self._log_dir / f"{name}.log"
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(body, log, parent)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        fork = Fork(pid, log)
        self._all.append(fork)
        return fork


def wait_for(forks: list[Fork], deadline: float) -> Fork | None:
    """Wait for the first that fails and return it, or for all; None if none has failed.

    Raises:
        TimeoutError: some have not ended at `deadline` (of `time.monotonic`).
    """
    while True:
        finished = [fork for fork in forks if fork.ended()]
        failed = next((fork for fork in finished if fork.code), None)
        if failed or len(finished) == len(forks):
            return failed
        if time.monotonic() > deadline:
            raise TimeoutError("it has not ended in time")
        time.sleep(_POLL_S)


def run_together(log_dir: Path, bodies: Mapping[str, Callable[[], None]], limit_s: float) -> None:
    """Run bodies by name, each in a child, and wait for all of them.

    Raises:
        RuntimeError: one has failed, or has not ended in time: its name, and the end of its log.
    """
    with Forks(log_dir) as forks:
        started = [forks.start(name, body) for name, body in bodies.items()]
        try:
            failed = wait_for(started, time.monotonic() + limit_s)
        except TimeoutError:
            failed = next(fork for fork in started if fork.code is None)
        if failed is not None:
            raise RuntimeError(f"{failed.log.stem}: {failed.tail(40)}")


def _run_child(body: Callable[[], None], log: Path, parent: int) -> NoReturn:
    """Run a child from fork to exit, without flushing or cleaning up anything of the parent's."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ[PARENT_VARIABLE] = str(parent)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        body()
        code = 0
    except SystemExit as exited:
        code = exited.code if isinstance(exited.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def alone(body: Callable[[], None]) -> Callable[[], None]:
    """`body` for a child that ends with its parent. A stage's worker does that itself."""

    def run() -> None:
        die_with_parent()
        body()

    return run
