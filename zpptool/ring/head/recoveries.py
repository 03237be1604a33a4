# SPDX-License-Identifier: Apache-2.0
"""What the head keeps of losses: how long the present one has lasted, what all of them have cost, and their words.

The invariant: a recovery begins with the first loss of a ring that was whole, or was to become so, and ends when it is
whole; losses on the way are part of it. Where the first of them was announced, it is a planned change and no loss.
Written by the head's receiving thread, read by any.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from zpptool.errors import ZppError, stage_error
from zpptool.ring.messages import StageFacts
from zpptool.ring.status import RECOVERING, RingStatus, StageStatus

MOST_IN_A_ROW = 8
"""So many losses with no call answered between them are a crash loop."""
SILENT_S = 2.0
"""A stage that is there tells how it fares more often than this."""


class Recoveries:
    """The losses of one run.

    Args:
        deadline_s: how long what was lost may take to come back.

    Attributes:
        count: recoveries that have ended well.
        planned: planned changes that have.
        stall_s: how long both took, all together.
        recomputed_tokens: tokens that had to be computed again.
        answered_in: the last epoch in which a call was answered while the ring was whole.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._began: float | None = None
        self._lost_at = 0.0
        self._gathered_at = 0.0
        self._causes: list[ZppError] = []
        self._newborn: list[str] = []
        self._in_a_row = 0
        self._announced = ""
        self._plan = ""
        self.answered_in = 0
        self.count = 0
        self.planned = 0
        self.stall_s = 0.0
        self.recomputed_tokens = 0

    @property
    def under_way(self) -> bool:
        """Whether the ring is recovering."""
        return self._began is not None

    def announce(self, plan: str) -> None:
        """What is lost next is lost on purpose. May be called from any thread.

        Args:
            plan: who leaves, and who has asked for it.
        """
        self._announced = plan

    def lost(self, cause: ZppError) -> str:
        """An epoch has ended with a loss, or as was announced. Returns why, in words."""
        self._lost_at = time.monotonic()
        first = self._began is None
        if first:
            self._began = self._lost_at
            self._causes, self._newborn = [], []
            self._plan, self._announced = self._announced, ""
        self._causes.append(cause)
        if first and self._plan:
            return self._plan
        self._in_a_row += 1
        return cause.message.rstrip(".")

    def answered(self, before: tuple[StageFacts, ...], now: tuple[StageFacts, ...]) -> None:
        """The roll call of an epoch has come home."""
        self._gathered_at = time.monotonic()
        known = {(facts.stage, facts.host, facts.pid) for facts in before}
        if before:
            self._newborn += [
                f"stage {facts.stage} ({facts.host}, pid {facts.pid})"
                for facts in now
                if (facts.stage, facts.host, facts.pid) not in known
            ]

    def has_answered(self, epoch: int) -> None:
        """A call was answered in this epoch. What is answered while the ring is set up is no sign of health."""
        if not self.under_way and epoch != self.answered_in:
            self.answered_in, self._in_a_row = epoch, 0

    def whole(self, epoch: int, setups: int) -> str:
        """The ring is whole: what there is to tell of it; empty where nothing was lost."""
        self._announced = ""
        if self._began is None:
            return ""
        now = time.monotonic()
        took_s = now - self._began
        if self._plan:
            self.planned += 1
        else:
            self.count += 1
        self.stall_s += took_s
        reborn = f"New: {', '.join(self._newborn)}. " if self._newborn else "Every stage is the one it was. "
        more = f" Losses that followed on the way: {len(self._causes) - 1}." if len(self._causes) > 1 else ""
        gathering_s, setting_up_s = self._gathered_at - self._lost_at, now - self._gathered_at
        what, began = ("planned", self._plan) if self._plan else ("recovered", self._causes[0].message.rstrip("."))
        told = (
            f"{what}: the ring is whole again, in epoch {epoch}, after {took_s:.1f} s. It began with this:"
            f" {began}.{more} {reborn}The last epoch took {gathering_s:.1f} s to gather"
            f" the stages and {setting_up_s:.1f} s to set them up ({setups} set-up calls)."
        )
        self._began = None
        return told

    def too_late(self, stages: Iterable[StageStatus]) -> ZppError | None:
        """Why the ring will not be whole again: what was lost has not come back in time, or is lost again and again."""
        if self._began is None:
            return None
        if self._in_a_row > MOST_IN_A_ROW:
            return stage_error(
                f"the pipeline is lost {self._in_a_row} times in a row, and nothing is computed in between; the last"
                f" time: {self._causes[-1].message}",
                "See the log of the stage that was lost: it may die of what it is asked.",
            )
        cause = self._plan or self._causes[0].message
        waited_s = time.monotonic() - self._lost_at
        if waited_s <= self._deadline_s:
            return None
        silent = [stage for stage in stages if stage.heard_age_s > SILENT_S or not stage.pid]
        missing = (
            f"stage {silent[0].stage} has not come back"
            if silent
            else "the stages are there, and their ring is not closed"
        )
        return stage_error(
            f"{missing} in {self._deadline_s:g} s (--recovery-deadline): {cause}",
            "Start it again, then the pipeline." if silent else "See what each stage waits for in its log.",
        )

    def told_in(self, status: RingStatus, *, recovering: bool) -> RingStatus:
        """A status with what is known here."""
        return msgspec.structs.replace(
            status,
            phase=RECOVERING if recovering else status.phase,
            recoveries=self.count,
            planned=self.planned,
            stall_s=self.stall_s + (time.monotonic() - self._began if self._began is not None else 0.0),
            recomputed_tokens=self.recomputed_tokens,
        )
