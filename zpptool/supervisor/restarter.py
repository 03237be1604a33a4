# SPDX-License-Identifier: Apache-2.0
"""Starts again, alone, each process of a group that was killed or has failed; the others keep running.

Nothing here waits: the owner of the group calls `Restarter.poll` regularly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from zpptool.errors import ExitCode
from zpptool.process.group import HEAD_NAME, Child, ProcessGroup
from zpptool.process.progress import LOADED, read_phase, still_for_s
from zpptool.process.respawn import SUFFIX, next_argv
from zpptool.supervisor.restart_policy import RestartPolicy
from zpptool.supervisor.stage_processes import file_name

_logger = logging.getLogger(__name__)


class Restarter:
    """Restarts the processes of one group.

    Args:
        group: the processes.
        phase_dir: where each of them reports its phase, and may save the spec for its restart.
        clock: seconds.
    """

    def __init__(self, group: ProcessGroup, phase_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = group
        self._phase_dir = phase_dir
        self._clock = clock
        self._policy = RestartPolicy()
        self._due: dict[str, float] = {}

    def poll(self) -> bool:
        """Start what is due, and return whether a process has ended for good."""
        ended = [child for child in self._group.children if child.ended]
        return sum(self._has_ended_for_good(child) for child in ended) > 0

    def all_loaded(self) -> bool:
        """Whether every process runs and has loaded."""
        return all(not child.ended and self._has_loaded(child) for child in self._group.children)

    def makes_progress(self, limit_s: float) -> bool:
        """Whether no stage that has loaded has been without progress for longer than `limit_s` seconds.

        A process that is started again or loads has time limits of its own, and the head computes nothing.
        """
        return all(
            child.ended
            or child.name == HEAD_NAME
            or not self._has_loaded(child)
            or still_for_s(self._phase_dir / file_name(child.name)) <= limit_s
            for child in self._group.children
        )

    def _has_loaded(self, child: Child) -> bool:
        return read_phase(self._phase_dir / file_name(child.name)) == LOADED

    def _has_ended_for_good(self, child: Child) -> bool:
        if child.name not in self._due:
            code = child.popen.returncode
            delay_s = self._policy.delay_s(child.name, code, became_ready=self._has_loaded(child))
            if delay_s is None:
                return True
            (self._phase_dir / file_name(child.name)).unlink(missing_ok=True)
            self._due[child.name] = self._clock() + delay_s
            when = f" in {delay_s:g} s" if delay_s else ""
            level = logging.INFO if code == ExitCode.AGAIN else logging.WARNING
            _logger.log(level, "%s %s; it is started again%s", child.name, child.how_it_ended(), when)
        if self._clock() >= self._due[child.name]:
            del self._due[child.name]
            saved = self._phase_dir / f"{file_name(child.name)}{SUFFIX}"
            self._group.restart(child, next_argv(saved, self._group.argv(child)))
        return False
