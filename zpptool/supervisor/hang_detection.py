# SPDX-License-Identifier: Apache-2.0
"""Which process of a supervised pipeline hangs, and why: a pure rule over the status that the ring reports.

The invariant: only a process that was itself heard, and has since given no sign of life for the limit, hangs; the
status of a process that it has replaced does not count. The caller kills it, and the ring, which waits for its place,
admits the process that replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.places import HEAD
from zpptool.ring.status import COMPUTING, READY, RECOVERING, RingStatus, hung

WHOLE_PHASES = frozenset({READY, COMPUTING})
"""The phases of a ring that has all its stages."""


def find_hung(
    status: RingStatus | None, unanswered_s: float, limit_s: float, pids: Mapping[int, int]
) -> tuple[int, str] | None:
    """The place that hangs, and the reason as text; None for none that is known.

    Args:
        status: the head's last status; None where there is no head.
        unanswered_s: seconds for which the head has not answered since then.
        limit_s: seconds for which a place may give no sign of life.
        pids: the process id of each place that runs.
    """
    if status is None:
        return None
    if unanswered_s > limit_s and HEAD in pids:
        return HEAD, f"it has not reported its status for {unanswered_s:.1f} s (--beat-timeout {limit_s:g})"
    if status.phase != RECOVERING:
        return None  # an idle stage may be still, and for a busy one the ring itself applies the limit
    still = hung(status.stages, limit_s)
    if still is None or pids.get(still.stage) != still.pid:
        return None
    what = f"has not moved for {still.beat_age_s:.1f} s" if still.beat_age_s else "is silent"
    return still.stage, f"its main loop {what}, last heard {still.heard_age_s:.1f} s ago (--beat-timeout {limit_s:g})"


def is_repaired(status: RingStatus | None, lost: frozenset[int]) -> bool:
    """Whether a ring is whole without the processes that were lost.

    Args:
        status: the head's last status.
        lost: their process ids.
    """
    if status is None or status.phase not in WHOLE_PHASES:
        return False
    return all(stage.pid and stage.pid not in lost for stage in status.stages)
