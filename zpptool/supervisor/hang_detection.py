# SPDX-License-Identifier: Apache-2.0
"""Which process of a kept-up pipeline hangs, and why: a pure rule over what the ring tells.

The invariant: only a process that has itself been heard, and then gave no sign of life for the limit, is said to hang;
what is told of one that it has taken the place of is not held against it. Whoever asks kills it, and the ring, which
waits for its place, takes in the one that is started instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from zpptool.places import HEAD
from zpptool.ring.status import COMPUTING, READY, RECOVERING, RingStatus, hung

WHOLE_PHASES = frozenset({READY, COMPUTING})


def hanging(
    told: RingStatus | None, unanswered_s: float, limit_s: float, pids: Mapping[int, int]
) -> tuple[int, str] | None:
    """The place that hangs, and why in words; None for none that is known.

    Args:
        told: what the head told last; None where there is no head.
        unanswered_s: for how long the head has been asked since then, and has not answered.
        limit_s: how long a place may give no sign of life.
        pids: the process of each place that runs.
    """
    if told is None:
        return None
    if unanswered_s > limit_s and HEAD in pids:
        return HEAD, f"it has not told its status for {unanswered_s:.1f} s (--beat-timeout {limit_s:g})"
    if told.phase != RECOVERING:
        return None  # a stage that nothing is asked of may stand still, and the ring itself says when it may not
    still = hung(told.stages, limit_s)
    if still is None or pids.get(still.stage) != still.pid:
        return None
    what = f"has not moved for {still.beat_age_s:.1f} s" if still.beat_age_s else "is silent"
    return still.stage, f"its main loop {what}, last heard {still.heard_age_s:.1f} s ago (--beat-timeout {limit_s:g})"


def is_mended(told: RingStatus | None, lost: frozenset[int]) -> bool:
    """Whether a ring is whole, and without the processes that were lost.

    Args:
        told: what the head told last.
        lost: their process ids.
    """
    if told is None or told.phase not in WHOLE_PHASES:
        return False
    return all(stage.pid and stage.pid not in lost for stage in told.stages)
