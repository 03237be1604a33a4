# SPDX-License-Identifier: Apache-2.0
"""Child processes as a group: start them, notice the first that ends, end them all, leave nothing behind.

Every child leads a process group of its own, so that a Ctrl-C in the terminal reaches only the parent, which then ends
its children in order, and so that whatever a child has started can be ended with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from zpptool.errors import ExitCode
from zpptool.process.child import PARENT_VARIABLE

HEAD_NAME = "head"
POLL_S = 0.02
STOP_GRACE_S = 8.0
"""How long a child may take over its own end before it is killed; a stage forces its exit earlier."""
SETTLE_S = 3.0
"""How long the end of one child may take to end the others."""
TAIL_BYTES = 64 * 1024

Hurry = Callable[[], bool]
"""Asked while children are waited for: whether it is to be given up."""


@dataclass(frozen=True, slots=True)
class Child:
    """One started process.

    Attributes:
        name: what a user calls it (`stage 1`, `head`).
        popen: the process.
        log: where its output goes; None where it shares this process's.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path | None

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    def how_it_ended(self) -> str:
        """Its end in words: `exited with code 3`, `was killed by SIGKILL`, `has left, as it was asked to`."""
        code = self.popen.poll()
        if code is None:
            return "is running"
        if code < 0:
            named = -code in set(signal.Signals)  # the real-time signals have no names
            return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
        return "has left, as it was asked to" if code == ExitCode.AGAIN else f"exited with code {code}"

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log, or those around its own last word (`child.run_child`) where that is further up, as
        libraries may have much to say while Python ends. Empty where it has no log."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL_BYTES, 0))
            said = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        own = [place for place, line in enumerate(said) if line.startswith(f"error: {self.name}: ")]
        end = own[-1] + 2 if own and own[-1] < len(said) - lines else len(said)  # a hint may follow it
        return "\n".join(said[:end][-lines:])


class Reserve(Protocol):
    """What may have a process at hand that can do what is to be started: `standby.Standby`."""

    def take(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None
    ) -> subprocess.Popen[bytes] | None:
        """A process that now does it; None where one has to be started."""
        ...

    def end(self) -> None:
        """End what is at hand."""
        ...


class ProcessGroup:
    """Children that live and end together. Use as a context manager: leaving it ends them all.

    Args:
        reserve: asked first whenever a child is to be started, and ended with the children; None for none.
    """

    def __init__(self, reserve: Reserve | None = None) -> None:
        self.children: list[Child] = []
        self._reserve = reserve
        self._told: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None = None) -> Child:
        """Start one child; its output goes to `log`, or to this process's output where that is None.

        It is told whose child it is, and ends when this process does: see `die_with_parent`.
        """
        return self._start(name, argv, env, log.open("wb") if log else None, log)

    def _start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None, log: Path | None
    ) -> Child:
        self._told[name] = argv, env
        popen = self._reserve.take(name, argv, env, log) if self._reserve is not None else None
        if popen is None:
            popen = spawn(argv, env, output)
        elif output:
            output.close()
        child = Child(name, popen, log)
        self.children.append(child)
        return child

    def words(self, child: Child) -> Sequence[str]:
        """The command line that it was started with."""
        return self._told[child.name][0]

    def start_again(self, child: Child, words: Sequence[str] | None = None) -> Child:
        """Start anew what has ended; what that may have left running is killed first. Its log goes on.

        Args:
            child: what has ended.
            words: its command line from now on, if that is another one.
        """
        kill_group(child.popen.pid)
        self.children.remove(child)
        argv, env = self._told[child.name]
        argv = words or argv
        return self._start(child.name, argv, env, child.log.open("ab") if child.log else None, child.log)

    def any_ended(self) -> bool:
        """Whether a child has ended."""
        return any(child.ended for child in self.children)

    def wait_for_end(self) -> Child:
        """Block until a child has ended, and tell which one's end says most about why: see `culprit`."""
        while not self.any_ended():
            time.sleep(POLL_S)
        return self.culprit()

    def culprit(self, hurry: Hurry | None = None) -> Child:
        """Once a child has ended: the one to blame. Where one ends the others follow, and each is given `SETTLE_S` to
        do so. A child that was killed is to blame, or else one that gives a reason of its own; only then one that lost
        the others, of these the head, which was told by whom; and last one that ended well, or was asked to leave.
        `hurry` cuts the waiting short."""
        self.settle(hurry)
        return min((child for child in self.children if child.ended), key=_innocence)

    def settle(self, hurry: Hurry | None = None) -> None:
        """Give the children `SETTLE_S` to end by themselves."""
        _wait_for_all(self.children, SETTLE_S, hurry)

    def stop(
        self, grace_s: float = STOP_GRACE_S, hurry: Hurry | None = None, names: Collection[str] | None = None
    ) -> None:
        """End all children, or those of these names: SIGTERM, a grace, then SIGKILL for each one's whole process group.
        Children that were ended so are in the group no more. With all of them goes the reserve.

        The head goes first and may take half of the grace, for it tells all stages, those elsewhere too, that the run
        is over: by way of stage 0. A Ctrl-C cuts the grace short, and so does `hurry`.
        """
        if names is None and self._reserve is not None:
            self._reserve.end()
        those = [child for child in self.children if names is None or child.name in names]
        heads = [child for child in those if child.name == HEAD_NAME]
        try:
            _terminate(heads, grace_s / 2, hurry)
            _terminate(those, grace_s / 2, hurry)
        finally:
            for child in those:
                kill_group(child.popen.pid)
                child.popen.wait()
            self.children = [child for child in self.children if child not in those]

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()


def _terminate(children: Sequence[Child], grace_s: float, hurry: Hurry | None) -> None:
    """Ask children to end, and give them time for it."""
    for child in children:
        if not child.ended:
            child.popen.terminate()
    _wait_for_all(children, grace_s, hurry)


def _wait_for_all(children: Sequence[Child], timeout_s: float, hurry: Hurry | None) -> None:
    """Return when all children have ended, the time is up, or it is not to be waited for any more."""
    deadline = time.monotonic() + timeout_s
    while not all(child.ended for child in children) and time.monotonic() < deadline:
        if hurry is not None and hurry():
            return
        time.sleep(POLL_S)


def _innocence(child: Child) -> tuple[int, bool]:
    """How little an ended child has to do with the end of the others."""
    code = child.popen.returncode
    if code < 0:
        return 0, False
    rank = 2 if code == ExitCode.STAGE else 3 if code in (ExitCode.OK, ExitCode.AGAIN) else 1
    return rank, child.name != HEAD_NAME


def spawn(
    argv: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that leads a group of its own and is told whose child it is.

    Args:
        argv: its command line.
        env: added to this process's environment.
        output: where its output goes, closed here; None where it shares this process's.
        pass_fds: what it is to have open.
    """
    try:
        return subprocess.Popen(
            argv,
            env={**os.environ, **env, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output or sys.stderr,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    finally:
        if output:
            output.close()


def kill_group(pid: int) -> None:
    """Kill what is left of a child's process group; nothing left is what was hoped for."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
