# SPDX-License-Identifier: Apache-2.0
"""Children that import nothing again: forks of a process that has imported vLLM, each with a log, all ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from zpptool.process.child import PARENT_VARIABLE, die_with_parent

_POLL_S = 0.05


@dataclass
class Fork:
    """One child.

    Attributes:
        pid: its process, and its process group: what it starts is in it too.
        log: where its output goes.
        code: how it ended, negative for a signal; None while it runs.
    """

    pid: int
    log: Path
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None and (told := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(told[1])
        return self.code is not None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Forks:
    """Children of one try; when the block is left, none of them is alive, nor what they started."""

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
        """Run `body` in a child, which ends with the code that it exits with, 0 when it returns, 1 when it raises."""
        log = self._log_dir / f"{name}.log"
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(body, log, parent)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        fork = Fork(pid, log)
        self._all.append(fork)
        return fork


def wait_for(forks: list[Fork], deadline: float) -> Fork | None:
    """The first of them that fails, or None when all have ended well.

    Raises:
        TimeoutError: some had not ended at `deadline` (of `time.monotonic`).
    """
    while True:
        over = [fork for fork in forks if fork.ended()]
        failed = next((fork for fork in over if fork.code), None)
        if failed or len(over) == len(forks):
            return failed
        if time.monotonic() > deadline:
            raise TimeoutError("it has not ended in time")
        time.sleep(_POLL_S)


def _live(body: Callable[[], None], log: Path, parent: int) -> NoReturn:
    """The whole life of a child; nothing of the parent's is flushed or cleaned up by it."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ[PARENT_VARIABLE] = str(parent)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        body()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def alone(body: Callable[[], None]) -> Callable[[], None]:
    """`body` as a child that ends with its parent; a stage's worker sees to that itself."""

    def run() -> None:
        die_with_parent()
        body()

    return run
