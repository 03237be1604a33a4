# SPDX-License-Identifier: Apache-2.0
"""Spare processes of one pipeline, as their parent sees them: kept ready, given away, and ended with all else.

A spare has no place in the pipeline: nobody but this class knows of it until it has taken a part. Whether a part is
taken by a spare or by a process that is started for it is decided in `Standby.take`, and nowhere else.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil

from zpptool.config.engine_kind import RUN_MODULE, STANDBY_PROCESS
from zpptool.config.stage_spec import StageSpec
from zpptool.console import human_bytes
from zpptool.process.group import kill_group, spawn
from zpptool.supervisor.standby.policy import ROOM_BYTES, Patience, common, fits
from zpptool.supervisor.standby.process import READY, TAKEN, Part

STARTER = (sys.executable, "-m", RUN_MODULE)
"""What every process of a pipeline is started by; its module and arguments follow."""
LOG_NAME = "spare.log"
TAKE_S = 1.0
"""How long a spare that is ready may take to answer before it is given up."""


@dataclass
class Spare:
    """A process without a part.

    Attributes:
        popen: the process.
        line: to it.
        env: what was added to its environment.
        ready_at: when it said that it is ready; None if it has not.
    """

    popen: subprocess.Popen[bytes]
    line: Connection
    env: Mapping[str, str]
    ready_at: float | None = None

    def hear(self, now: float) -> bool:
        """Take in what it says; whether it has become ready just now."""
        try:
            if self.ready_at is None and self.line.poll() and self.line.recv_bytes() == READY:
                self.ready_at = now
                return True
        except (EOFError, OSError):
            return False
        return False

    def take(self, part: Part) -> bool:
        """Give it its part; whether it has taken it."""
        try:
            self.line.send_bytes(msgspec.msgpack.encode(part))
            taken = self.line.poll(TAKE_S) and self.line.recv_bytes() == TAKEN
        except (EOFError, OSError):
            return False
        self.line.close()
        return taken

    def end(self) -> None:
        """It has nothing to lose."""
        self.line.close()
        kill_group(self.popen.pid)
        self.popen.wait()


class Standby:
    """Keeps spares.

    Args:
        count: how many there should be.
        tell: is told, in words, what becomes of them.
        clock: seconds.
    """

    def __init__(self, count: int, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._tell = tell
        self._clock = clock
        self._patience = Patience()
        self._spares: tuple[Spare, ...] = ()
        self._had_room = True

    @property
    def ready(self) -> int:
        """How many are ready. May be asked from any thread."""
        return sum(spare.ready_at is not None for spare in self._spares)

    def keep(self, specs: Sequence[StageSpec], env: Mapping[str, str], *, calm: bool, log_dir: Path | None) -> None:
        """Look after them; to be called again and again.

        Args:
            specs: what they may have to become.
            env: what is added to the environment of these.
            calm: whether the pipeline is whole, so that one may be started.
            log_dir: where their logs go; None lets them share this process's output.
        """
        if not self._count:
            return
        now = self._clock()
        for spare in self._spares:
            if spare.hear(now):
                self._tell(f"a spare process is ready (pid {spare.popen.pid})")
            elif spare.popen.poll() is not None:
                self._lose(spare, now, log_dir)
        whole = calm and all(spare.ready_at is not None for spare in self._spares)
        if self._patience.look(now, calm=whole) and len(self._spares) < self._count and self._has_room():
            try:
                self._start(specs, common(env), log_dir)
            except OSError as fault:
                self._patience.lost(now, 0.0)
                self._tell(f"no spare process can be started: {fault}")

    def take(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None
    ) -> subprocess.Popen[bytes] | None:
        """A spare that now does what `argv` would have started; None where one has to be started.

        It is not where no spare is ready: one that imports is not waited for, as nobody knows how far it is.

        Args:
            name: what is to be started, for people.
            argv: the command line.
            env: what is added to its environment.
            log: where its output goes; None where it shares this process's.
        """
        if tuple(argv[: len(STARTER)]) != STARTER:
            return None
        part = Part(tuple(argv[len(STARTER) :]), dict(env), str(log.absolute()) if log else "")
        for spare in self._spares:
            if spare.ready_at is None or not fits(spare.env, env):
                continue
            self._spares = tuple(other for other in self._spares if other is not spare)
            if spare.take(part):
                self._tell(f"a spare process becomes {name} (pid {spare.popen.pid})")
                return spare.popen
            spare.end()
        return None

    def end(self) -> None:
        """End them all."""
        spares, self._spares = self._spares, ()
        for spare in spares:
            spare.end()

    def _has_room(self) -> bool:
        """Whether memory has room for one more; where it has not, that is told once."""
        room = psutil.virtual_memory().available >= ROOM_BYTES
        if self._had_room and not room:
            self._tell(f"no spare process is started as long as less than {human_bytes(ROOM_BYTES)} are available")
        self._had_room = room
        return room

    def _lose(self, spare: Spare, now: float, log_dir: Path | None) -> None:
        self._spares = tuple(other for other in self._spares if other is not spare)
        spare.end()
        self._patience.lost(now, now - spare.ready_at if spare.ready_at is not None else 0.0)
        if self._patience.at_its_end:
            where = f" (see {log_dir / LOG_NAME})" if log_dir else ""
            self._tell(f"spare processes end again and again: no more are started{where}")

    def _start(self, specs: Sequence[StageSpec], env: Mapping[str, str], log_dir: Path | None) -> None:
        ours, theirs = Pipe()
        words = (*STARTER, STANDBY_PROCESS, str(theirs.fileno()))
        output = (log_dir / LOG_NAME).open("ab") if log_dir else None
        with theirs:
            popen = spawn(words, env, output, (theirs.fileno(),))
        spare = Spare(popen, ours, env)
        self._spares = (*self._spares, spare)
        ours.send_bytes(msgspec.msgpack.encode(tuple(specs)))
