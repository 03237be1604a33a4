# SPDX-License-Identifier: Apache-2.0
"""The spare processes of one pipeline: started, kept ready, assigned, and ended with the pipeline.

A spare has no place in the pipeline, and only this class knows it until it is assigned. Whether a process is started or
a spare takes its place is decided in `SparePool.take`, and nowhere else.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path

import msgspec
import psutil

from zpptool.config.engine_kind import STANDBY_PROCESS
from zpptool.config.stage_spec import StageSpec
from zpptool.console import human_bytes
from zpptool.process.group import STARTER, spawn
from zpptool.supervisor.standby.policy import MIN_AVAILABLE_BYTES, StartPolicy, early_variables, fits
from zpptool.supervisor.standby.process import Assignment
from zpptool.supervisor.standby.spare import Spare

LOG_NAME = "spare.log"
_logger = logging.getLogger(__name__)


class SparePool:
    """Keeps spare processes ready.

    Args:
        count: how many spares to keep.
        pipeline: the pipeline's name, for log messages; empty where there is only one.
        clock: seconds.
    """

    def __init__(self, count: int, pipeline: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._prefix = f"{pipeline}: " if pipeline else ""
        self._clock = clock
        self._policy = StartPolicy()
        self._spares: tuple[Spare, ...] = ()
        self._had_room = True

    @property
    def ready(self) -> int:
        """How many are ready. May be called from any thread."""
        return sum(spare.ready_at is not None for spare in self._spares)

    def maintain(
        self, specs: Sequence[StageSpec], env: Mapping[str, str], *, stable: bool, log_dir: Path | None
    ) -> None:
        """Receive reports, drop spares that have ended, and start one where one is missing. To be called regularly.

        Args:
            specs: the stages that a spare may become.
            env: what is added to the environment of their processes.
            stable: whether the pipeline is whole, so that a spare may be started.
            log_dir: where the spares' log goes; None to share this process's output.
        """
        if not self._count:
            return
        now = self._clock()
        for spare in self._spares:
            if spare.poll_ready(now):
                _logger.info("%sa spare process is ready (pid %d)", self._prefix, spare.popen.pid)
            elif spare.popen.poll() is not None:
                self._drop(spare, now, log_dir)
        may_start = self._policy.may_start(now, stable=stable and self.ready == len(self._spares))
        if may_start and len(self._spares) < self._count and self._has_room():
            try:
                self._start(specs, early_variables(env), log_dir)
            except OSError as fault:
                self._policy.record_failure(now, 0.0)
                _logger.warning("%sno spare process can be started: %s", self._prefix, fault)

    def take(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path | None
    ) -> subprocess.Popen[bytes] | None:
        """A spare that now runs what `argv` would have started; None where a process has to be started.

        A spare that is still importing is not waited for: how long it will take is not known.

        Args:
            name: of the process in the pipeline (`stage 1`, `head`).
            argv: the command line.
            env: what is added to its environment.
            log: where its output goes; None to share this process's output.
        """
        if tuple(argv[: len(STARTER)]) != STARTER:
            return None
        assignment = Assignment(tuple(argv[len(STARTER) :]), dict(env), str(log.absolute()) if log else "")
        for spare in self._spares:
            if spare.ready_at is None or not fits(spare.env, env):
                continue
            self._remove(spare)
            if spare.assign(assignment):
                _logger.info("%sa spare process becomes %s (pid %d)", self._prefix, name, spare.popen.pid)
                return spare.popen
            spare.end()
        return None

    def end(self) -> None:
        """End all spares."""
        spares, self._spares = self._spares, ()
        for spare in spares:
            spare.end()

    def _has_room(self) -> bool:
        """Whether memory has room for one more; that it has not is logged once."""
        room = psutil.virtual_memory().available >= MIN_AVAILABLE_BYTES
        if self._had_room and not room:
            _logger.warning(
                "%sno spare process is started as long as less than %s are available",
                self._prefix, human_bytes(MIN_AVAILABLE_BYTES),
            )  # fmt: skip
        self._had_room = room
        return room

    def _drop(self, spare: Spare, now: float, log_dir: Path | None) -> None:
        """Remove a spare that has ended unused."""
        self._remove(spare)
        spare.end()
        self._policy.record_failure(now, now - spare.ready_at if spare.ready_at is not None else 0.0)
        if self._policy.is_exhausted:
            where = f" (see {log_dir / LOG_NAME})" if log_dir else ""
            _logger.warning("%sspare processes end again and again: no more are started%s", self._prefix, where)

    def _remove(self, spare: Spare) -> None:
        self._spares = tuple(other for other in self._spares if other is not spare)

    def _start(self, specs: Sequence[StageSpec], env: Mapping[str, str], log_dir: Path | None) -> None:
        ours, theirs = Pipe()
        argv = (*STARTER, STANDBY_PROCESS, str(theirs.fileno()))
        output = (log_dir / LOG_NAME).open("ab") if log_dir else None
        with theirs:
            popen = spawn(argv, env, output, (theirs.fileno(),))
        spare = Spare(popen, ours, env)
        self._spares = (*self._spares, spare)
        ours.send_bytes(msgspec.msgpack.encode(tuple(specs)))
