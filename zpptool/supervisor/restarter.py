# SPDX-License-Identifier: Apache-2.0
"""Starts again, alone, each process of a group that was killed or has failed; the others keep what they have.

Nothing here waits: whoever watches a group asks `look` now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zpptool.errors import ExitCode
from zpptool.process.group import Child, ProcessGroup
from zpptool.process.progress import LOADED, read_phase
from zpptool.process.respawn import SUFFIX, next_words
from zpptool.supervisor.restart_policy import RestartPolicy
from zpptool.supervisor.stage_processes import file_name


class Restarter:
    """The next lives of one group's processes.

    Args:
        group: the processes.
        phase_dir: where each of them tells its phase, and may leave the spec of its next life.
        tell: is told, in words, of each one that was lost and is started again.
        note: likewise of each one that has left because it was asked to; `tell`, if not given.
        clock: seconds.
    """

    def __init__(
        self,
        group: ProcessGroup,
        phase_dir: Path,
        tell: Callable[[str], None],
        note: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._phase_dir = phase_dir
        self._tell = tell
        self._note = note or tell
        self._clock = clock
        self._lives = RestartPolicy()
        self._due: dict[str, float] = {}

    def look(self) -> bool:
        """Start what is due, and tell whether a process has ended for good."""
        ended = [child for child in self._group.children if child.ended]
        return sum(self._has_ended_for_good(child) for child in ended) > 0

    def all_stand(self) -> bool:
        """Whether every process has come as far as doing its work, and none has ended since."""
        children = self._group.children
        return all(not child.ended and self._stands(child) for child in children)

    def _stands(self, child: Child) -> bool:
        return read_phase(self._phase_dir / file_name(child.name)) == LOADED

    def _has_ended_for_good(self, child: Child) -> bool:
        if child.name not in self._due:
            rest_s = self._lives.rest_s(child.name, child.popen.returncode, stood=self._stands(child))
            if rest_s is None:
                return True
            (self._phase_dir / file_name(child.name)).unlink(missing_ok=True)
            self._due[child.name] = self._clock() + rest_s
            soon = f" in {rest_s:g} s" if rest_s else ""
            tell = self._note if child.popen.returncode == ExitCode.AGAIN else self._tell
            tell(f"{child.name} {child.how_it_ended()}; it is started again{soon}")
        if self._clock() >= self._due[child.name]:
            del self._due[child.name]
            left = self._phase_dir / f"{file_name(child.name)}{SUFFIX}"
            self._group.start_again(child, next_words(left, self._group.words(child)))
        return False
