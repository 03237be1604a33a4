# SPDX-License-Identifier: Apache-2.0
"""Which process a spare may become, and when a spare is started: pure rules.

The invariants: a spare takes an assignment only if it then behaves exactly like a process that was started for it; and
no spare is started while any other process of the pipeline is, because it would compete with that one for the
processors.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.process.environment import NEXT_SPEC_VARIABLE, PHASE_VARIABLE
from zpptool.supervisor.backoff import Backoff

READ_LATE = frozenset({"CUDA_VISIBLE_DEVICES", PHASE_VARIABLE, NEXT_SPEC_VARIABLE})
"""Environment variables that are read after the imports: a spare may get them with its assignment."""
STABLE_S = 3.0
"""How long a pipeline has to be stable before a spare is started: at first it recomputes what was lost."""
BACKOFF = Backoff(max_failures=5, first_s=2.0)
"""For spares that end unused."""
MIN_AVAILABLE_BYTES = 2 << 30
"""How much memory has to be available for a spare to be started: about twice what it takes. Taking memory from the
stages would cost more than a spare saves."""
LONG_READY_S = 300.0
"""A spare that was ready for this long and then ends is the first failure of a new row."""


def fits(own: Mapping[str, str], required: Mapping[str, str]) -> bool:
    """Whether a spare may take an assignment.

    Args:
        own: what was added to the environment in which the spare was started.
        required: what the assignment adds to the environment.
    """
    differing = {name for name in own.keys() | required.keys() if own.get(name) != required.get(name)}
    return differing <= READ_LATE


def early_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The part of an assignment's environment with which a spare is started, so that it fits."""
    return {name: value for name, value in env.items() if name not in READ_LATE}


class StartPolicy:
    """When the next spare may be started. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._stable_since: float | None = None
        self._failures = 0
        self._not_before = 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether no more spares are started."""
        return BACKOFF.is_exhausted(self._failures)

    def may_start(self, now: float, *, stable: bool) -> bool:
        """Whether a spare may be started now. To be called regularly: it tracks for how long the pipeline is stable.

        Args:
            now: the time.
            stable: whether the pipeline is whole, and no other spare is being started.
        """
        if not stable:
            self._stable_since = None
            return False
        self._stable_since = now if self._stable_since is None else self._stable_since
        return not self.is_exhausted and now >= max(self._not_before, self._stable_since + STABLE_S)

    def record_failure(self, now: float, ready_for_s: float) -> None:
        """Count a spare that has ended unused.

        Args:
            now: the time.
            ready_for_s: how long it was ready.
        """
        self._failures = 1 if ready_for_s >= LONG_READY_S else self._failures + 1
        self._not_before = now + BACKOFF.delay_s(self._failures)
