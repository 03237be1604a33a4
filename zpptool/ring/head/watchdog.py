# SPDX-License-Identifier: Apache-2.0
"""The head's time limits: calls without an answer, stages that hang, losses without a recovery.

The watchdog only judges; the receiving thread acts on its findings.
"""

from __future__ import annotations

import time

from zpptool.errors import ZppError, stage_error
from zpptool.ring.head.epochs import Lost
from zpptool.ring.head.event_queue import EventQueue
from zpptool.ring.head.pending_calls import PendingCalls
from zpptool.ring.head.recoveries import Recoveries
from zpptool.ring.head.view import RingView
from zpptool.ring.status import hung
from zpptool.ring.timeouts import RingTimeouts
from zpptool.wire.link_errors import PeerLost

CAUSE_S = 0.6
"""After losing stage 0, the head waits this long for a report of the cause: a stage often ends because of another."""


class Watchdog:
    """Judges a ring by what the head knows of it.

    Args:
        calls: those that are under way.
        view: the last reports of the stages.
        recoveries: the losses so far.
        events: where a loss is posted that begins a new epoch.
        timeouts: of the head.
    """

    def __init__(
        self,
        calls: PendingCalls,
        view: RingView,
        recoveries: Recoveries,
        events: EventQueue,
        timeouts: RingTimeouts,
    ) -> None:
        self._calls = calls
        self._view = view
        self._recoveries = recoveries
        self._events = events
        self._timeouts = timeouts
        self._suspected: tuple[PeerLost, float] | None = None

    def overdue(self, *, gathering: bool) -> ZppError | None:
        """The error for a call past its deadline or a recovery past its own; None if neither is late.

        Args:
            gathering: whether the head waits for the stages of an epoch to answer the roll call.
        """
        late = self._calls.late()
        if late is not None:
            num_stages = self._view.num_stages
            awaited = range(num_stages) if late.num_answers > 1 else [num_stages - 1]
            silent = ", ".join(str(stage) for stage in awaited if stage not in late.payloads)
            return stage_error(
                f"{late.method} was not answered in {late.allowed_s:g} s by stage {silent}",
                "See its log, and those of the stages before it: one of them is busy, stopped or hung.",
            )
        return self._recoveries.too_late(self._view.stages()) if gathering else None

    def hung_stage(self) -> ZppError | None:
        """The error for a stage that makes no progress while a step is under way; None if there is none."""
        steps = self._calls.steps()
        if not steps:
            self._view.expect_reports_from_now()
            return None
        limit_s = self._timeouts.beat_s
        if time.monotonic() - self._recoveries.whole_at < limit_s:
            return None  # reports from before the ring was whole say nothing about the present epoch
        stage = hung(self._view.stages(), limit_s)
        if stage is None:
            return None
        symptom = f"has not moved for {stage.beat_age_s:.1f} s" if stage.beat_age_s else "is silent"
        return stage_error(
            f"stage {stage.stage} hangs ({stage.process}): its main loop {symptom}, last heard"
            f" {stage.heard_age_s:.1f} s ago, while {steps[0]} waits for it (epoch {stage.epoch})",
            f"It may take {limit_s:g} s (--beat-timeout). Its log, or py-spy, shows where it is stuck.",
        )

    def suspect(self, fault: PeerLost, epoch: int) -> None:
        """Stage 0 was lost in this epoch. May be called from any thread.

        Where losses are survived, the loss counts at once. Otherwise it breaks the pipeline, and a stage's report of
        the actual cause gets `CAUSE_S` to arrive first.
        """
        if self._timeouts.survives_losses:
            self._events.post(Lost(epoch, fault))
        elif self._suspected is None:
            self._suspected = fault, time.monotonic() + CAUSE_S

    def confirmed_loss(self) -> PeerLost | None:
        """The suspected loss of stage 0 once the time for a better explanation is over."""
        suspected = self._suspected
        return suspected[0] if suspected is not None and suspected[1] < time.monotonic() else None

    def forget_suspicion(self) -> None:
        """A new epoch has begun."""
        self._suspected = None
