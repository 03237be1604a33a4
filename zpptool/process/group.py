# SPDX-License-Identifier: Apache-2.0
"""Child processes as a group: start them, notice the first that ends, end them all, leave nothing running.

Every child leads a process group of its own. So a Ctrl-C in the terminal reaches only the parent, which then ends its
children in order, and whatever a child has started can be ended together with it.
"""

from __future__ import annotations

import json
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

from zpptool.config.engine_kind import RUN_MODULE
from zpptool.errors import ExitCode
from zpptool.process.environment import parent_variables

HEAD_NAME = "head"
STARTER = (sys.executable, "-m", RUN_MODULE)
"""How every process of a pipeline is started; its module and arguments follow."""
POLL_S = 0.02
STOP_GRACE_S = 8.0
"""How long a child may take to end before it is killed; a stage forces its own exit earlier."""
SETTLE_S = 3.0
"""How long the end of one child may take to end the others."""
TAIL_BYTES = 64 * 1024

Hurry = Callable[[], bool]
"""Called while children are waited for: returns whether to stop waiting."""


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
        """Whether it has ended."""
        return self.popen.poll() is not None

    def how_it_ended(self) -> str:
        """Its end as text: `exited with code 3`, `was killed by SIGKILL`, `has left, as it was asked to`."""
        code = self.popen.poll()
        if code is None:
            return "is running"
        if code < 0:
            named = -code in set(signal.Signals)  # the real-time signals have no names
            return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
        return "has left, as it was asked to" if code == ExitCode.AGAIN else f"exited with code {code}"

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log; empty where it has no log.

        If the error that it ended with (`child.run_child`) is further up, the lines up to that error: libraries may
        write much while Python ends.
        """
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL_BYTES, 0))
            content = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        errors = [number for number, line in enumerate(content) if is_final_error(self.name, line)]
        end = errors[-1] + 2 if errors and errors[-1] < len(content) - lines else len(content)  # a hint may follow
        return "\n".join(content[:end][-lines:])


def is_final_error(name: str, line: str) -> bool:
    """Whether a line of a log is the error that a child of this name ended with, in either `log.LogFormat`."""
    if line.startswith(f"error: {name}: "):
        return True
    if not line.startswith("{"):
        return False
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return entry.get("level") == "error" and entry.get("stage") == name and "exit_code" in entry


class SpareSource(Protocol):
    """May have a process ready that can take over a command line: `supervisor.standby.spare_pool.SparePool`."""

    def take(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None
    ) -> subprocess.Popen[bytes] | None:
        """A process that now runs this command line; None where one has to be started."""
        ...

    def end(self) -> None:
        """End the processes that are ready."""
        ...


class ProcessGroup:
    """Children that are ended together. Use as a context manager: leaving it ends them all.

    Attributes:
        children: those that were started and not yet removed by `stop`, in the order of their start.

    Args:
        spares: asked for a process before a child is started, and ended with the children; None for no spares.
    """

    def __init__(self, spares: SpareSource | None = None) -> None:
        self.children: list[Child] = []
        self._spares = spares
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None = None) -> Child:
        """Start one child, which ends when this process does (`child.die_with_parent`).

        Args:
            name: what a user calls it.
            argv: its command line.
            env: added to this process's environment.
            log: where its output goes, from the beginning of the file; None to share this process's output.
        """
        return self._start(name, argv, env, log.open("wb") if log else None, log)

    def _start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None, log: Path | None
    ) -> Child:
        self._commands[name] = argv, env
        popen = self._spares.take(name, argv, env, log) if self._spares is not None else None
        if popen is None:
            popen = spawn(argv, env, output)
        elif output:
            output.close()
        child = Child(name, popen, log)
        self.children.append(child)
        return child

    def argv(self, child: Child) -> Sequence[str]:
        """The command line that a child was started with."""
        return self._commands[child.name][0]

    def restart(self, child: Child, argv: Sequence[str] | None = None) -> Child:
        """Start an ended child again, after killing what is left of its process group. Its log is appended to.

        Args:
            child: the child that has ended.
            argv: its new command line; None for the former one.
        """
        kill_group(child.popen.pid)
        self.children.remove(child)
        former, env = self._commands[child.name]
        return self._start(child.name, argv or former, env, child.log.open("ab") if child.log else None, child.log)

    def any_ended(self) -> bool:
        """Whether a child has ended."""
        return any(child.ended for child in self.children)

    def wait_for_end(self) -> Child:
        """Block until a child has ended, and return the one at fault (`culprit`)."""
        while not self.any_ended():
            time.sleep(POLL_S)
        return self.culprit()

    def culprit(self, hurry: Hurry | None = None) -> Child:
        """The child at fault, once one has ended.

        Where one ends the others follow, so they are given `SETTLE_S` seconds to do so. In this order: a child that
        was killed; one that exits for a reason of its own; one that lost another (of these the head, which knows which
        one it was); one that ended well, or was asked to leave.

        Args:
            hurry: ends the wait early.
        """
        self.settle(hurry)
        return min((child for child in self.children if child.ended), key=_innocence)

    def settle(self, hurry: Hurry | None = None) -> None:
        """Give the children `SETTLE_S` seconds to end by themselves."""
        _wait_for_all(self.children, SETTLE_S, hurry)

    def stop(
        self, grace_s: float = STOP_GRACE_S, hurry: Hurry | None = None, names: Collection[str] | None = None
    ) -> None:
        """End children: SIGTERM, a grace, then SIGKILL for the process group of each; and remove them from the group.

        The head is first and may take half of the grace, because it informs all stages, on other machines too, that
        the run is over: through stage 0. A Ctrl-C ends the grace early.

        Args:
            grace_s: seconds until the SIGKILL.
            hurry: ends the grace early.
            names: of the children to end; None for all of them and the spares.
        """
        if names is None and self._spares is not None:
            self._spares.end()
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
    """Send SIGTERM to children, and wait until they have ended or the grace is over."""
    for child in children:
        if not child.ended:
            child.popen.terminate()
    _wait_for_all(children, grace_s, hurry)


def _wait_for_all(children: Sequence[Child], timeout_s: float, hurry: Hurry | None) -> None:
    """Return when all children have ended, the time is up, or `hurry` returns true."""
    deadline = time.monotonic() + timeout_s
    while not all(child.ended for child in children) and time.monotonic() < deadline:
        if hurry is not None and hurry():
            return
        time.sleep(POLL_S)


def _innocence(child: Child) -> tuple[int, bool]:
    """The rank of an ended child among those that may have caused the end of the others; the lowest is at fault."""
    code = child.popen.returncode
    if code < 0:
        return 0, False
    rank = 2 if code == ExitCode.STAGE else 3 if code in (ExitCode.OK, ExitCode.AGAIN) else 1
    return rank, child.name != HEAD_NAME


def spawn(
    argv: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that leads a process group of its own and can watch its parent.

    Args:
        argv: its command line.
        env: added to this process's environment.
        output: where its output goes, closed here; None to share this process's output.
        pass_fds: file descriptors that it inherits.
    """
    try:
        return subprocess.Popen(
            argv,
            env={**os.environ, **env, **parent_variables()},
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
    """Kill what is left of a child's process group, if anything is."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
