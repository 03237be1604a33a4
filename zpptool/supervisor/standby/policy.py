# SPDX-License-Identifier: Apache-2.0
"""Which part a spare process may take, and when a spare is started: pure rules.

The invariants: a spare takes a part only where it then cannot be told from a process that was started for it; and none
is started while anything else of the pipeline is, for it would take the processors from what is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.process.progress import PHASE_VARIABLE
from zpptool.process.respawn import NEXT_SPEC_VARIABLE

READ_LATE = frozenset({"CUDA_VISIBLE_DEVICES", PHASE_VARIABLE, NEXT_SPEC_VARIABLE})
"""Variables of the environment that are read after the imports: a spare may be told them when it takes its part."""
CALM_S = 3.0
"""A pipeline has to be whole for so long before a spare is started: first it computes again what was lost."""
MOST_IN_A_ROW = 5
"""So many spares in a row may end unused before there are no more."""
FIRST_REST_S = 2.0
ROOM_BYTES = 2 << 30
"""So much memory has to be available for a spare to be started: about twice what it takes. What it would take from the
stages would cost more than it saves."""
STOOD_S = 300.0
"""A spare that was ready for so long has not ended in vain."""


def fits(own: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a spare may take a part.

    Args:
        own: what was added to the environment that it was started in.
        wanted: what is added for the part.
    """
    differing = {name for name in own.keys() | wanted.keys() if own.get(name) != wanted.get(name)}
    return differing <= READ_LATE


def common(env: Mapping[str, str]) -> dict[str, str]:
    """What a spare is started with, so that it fits a part that wants `env`."""
    return {name: value for name, value in env.items() if name not in READ_LATE}


class Patience:
    """When the next spare may be started. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._calm_since: float | None = None
        self._in_a_row = 0
        self._not_before = 0.0

    @property
    def at_its_end(self) -> bool:
        """Whether no spare is started any more."""
        return self._in_a_row >= MOST_IN_A_ROW

    def look(self, now: float, *, calm: bool) -> bool:
        """Whether one may be started now.

        Args:
            now: the time.
            calm: whether the pipeline is whole, and no other spare is being started.
        """
        if not calm:
            self._calm_since = None
            return False
        self._calm_since = now if self._calm_since is None else self._calm_since
        return not self.at_its_end and now >= max(self._not_before, self._calm_since + CALM_S)

    def lost(self, now: float, stood_s: float) -> None:
        """A spare has ended unused, `stood_s` after it had become ready."""
        self._in_a_row = 1 if stood_s >= STOOD_S else self._in_a_row + 1
        self._not_before = now + FIRST_REST_S * 2.0 ** (self._in_a_row - 1)
