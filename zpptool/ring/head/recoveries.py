# SPDX-License-Identifier: Apache-2.0
"""The head's record of losses: how long the present recovery has lasted, what all of them have cost, and summaries.

The invariant: a recovery begins with the first loss of a ring that was whole, or was about to be, and ends when it is
whole again; further losses before that are part of it. If the first of them was announced, it is a planned change and
does not count as a loss. Written by the head's receiving thread, read by any.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from zpptool.errors import ZppError, stage_error
from zpptool.ring.messages import StageFacts
from zpptool.ring.status import RECOVERING, RingStatus, StageStatus

MOST_IN_A_ROW = 8
"""More losses than this with no call answered in between are a crash loop."""
SILENT_S = 2.0
"""A stage that is connected reports more often than this."""


class Recoveries:
    """The losses of one run.

    Args:
        deadline_s: how long a lost stage may take to come back, in seconds.

    Attributes:
        count: completed recoveries.
        planned: completed planned changes.
        stall_s: how long both took in all, in seconds.
        recomputed_tokens: tokens that had to be computed again.
        answered_in: the last epoch in which a call was answered while the ring was whole.
        whole_at: when the ring became whole last, on the clock of `time.monotonic`; 0 before the first time.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._began: float | None = None
        self._lost_at = 0.0
        self._gathered_at = 0.0
        self._causes: list[ZppError] = []
        self._replaced: list[str] = []
        self._in_a_row = 0
        self._announced = ""
        self._plan = ""
        self.answered_in = 0
        self.whole_at = 0.0
        self.count = 0
        self.planned = 0
        self.stall_s = 0.0
        self.recomputed_tokens = 0

    @property
    def under_way(self) -> bool:
        """Whether the ring is recovering."""
        return self._began is not None

    def announce(self, plan: str) -> None:
        """Make the next loss a planned change. May be called from any thread.

        Args:
            plan: which stages leave, and who asked for it.
        """
        self._announced = plan

    def lost(self, cause: ZppError) -> str:
        """An epoch has ended with a loss or a planned change. Returns the cause as text."""
        self._lost_at = time.monotonic()
        first = self._began is None
        if first:
            self._began = self._lost_at
            self._causes, self._replaced = [], []
            self._plan, self._announced = self._announced, ""
        self._causes.append(cause)
        if first and self._plan:
            return self._plan
        self._in_a_row += 1
        return cause.message.rstrip(".")

    def roll_answered(self, before: tuple[StageFacts, ...], now: tuple[StageFacts, ...]) -> None:
        """The roll call of an epoch has come back.

        Args:
            before: the stages of the epoch before; empty for the first one.
            now: the stages of this epoch.
        """
        self._gathered_at = time.monotonic()
        known = {(facts.stage, facts.host, facts.pid) for facts in before}
        if before:
            self._replaced += [
                f"stage {facts.stage} ({facts.host}, pid {facts.pid})"
                for facts in now
                if (facts.stage, facts.host, facts.pid) not in known
            ]

    def call_answered(self, epoch: int) -> None:
        """A call was answered in this epoch. During set-up this does not show that the ring can compute."""
        if not self.under_way and epoch != self.answered_in:
            self.answered_in, self._in_a_row = epoch, 0

    def whole(self, epoch: int, setups: int) -> str:
        """The ring is whole.

        Args:
            epoch: in which it is.
            setups: how many set-up calls were repeated.

        Returns:
            a summary of the recovery; empty if nothing was lost.
        """
        self._announced = ""
        now = self.whole_at = time.monotonic()
        if self._began is None:
            return ""
        took_s = now - self._began
        if self._plan:
            self.planned += 1
        else:
            self.count += 1
        self.stall_s += took_s
        replaced = f"New: {', '.join(self._replaced)}. " if self._replaced else "Every stage is the one it was. "
        more = f" Losses that followed on the way: {len(self._causes) - 1}." if len(self._causes) > 1 else ""
        gathering_s, setting_up_s = self._gathered_at - self._lost_at, now - self._gathered_at
        kind, cause = ("planned", self._plan) if self._plan else ("recovered", self._causes[0].message.rstrip("."))
        self._began = None
        return (
            f"{kind}: the ring is whole again, in epoch {epoch}, after {took_s:.1f} s. It began with this:"
            f" {cause}.{more} {replaced}The last epoch took {gathering_s:.1f} s to gather"
            f" the stages and {setting_up_s:.1f} s to set them up ({setups} set-up calls)."
        )

    def too_late(self, stages: Iterable[StageStatus]) -> ZppError | None:
        """Why the recovery under way has failed: past its deadline, or one loss after another; None if it has not.

        Args:
            stages: their last reports.
        """
        if self._began is None:
            return None
        if self._in_a_row > MOST_IN_A_ROW:
            return stage_error(
                f"the pipeline is lost {self._in_a_row} times in a row, and nothing is computed in between; the last"
                f" time: {self._causes[-1].message}",
                "See the log of the stage that was lost: the calls it gets may crash it.",
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

    def add_to(self, status: RingStatus, *, recovering: bool) -> RingStatus:
        """A status with the counts of this record, and the phase `recovering` if that is so."""
        return msgspec.structs.replace(
            status,
            phase=RECOVERING if recovering else status.phase,
            recoveries=self.count,
            planned=self.planned,
            stall_s=self.stall_s + (time.monotonic() - self._began if self._began is not None else 0.0),
            recomputed_tokens=self.recomputed_tokens,
        )
