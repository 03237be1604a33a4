# SPDX-License-Identifier: Apache-2.0
"""What the head knows of the ring: what the stages told last, aged since then."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from zpptool.errors import ZppError
from zpptool.places import HEAD
from zpptool.ring.heartbeat import Pulse, own_status
from zpptool.ring.messages import Seat
from zpptool.ring.status import BROKEN, STOPPED, RingStatus, StageStatus, aged, phase_of, unheard
from zpptool.wire.link import LinkSender


class RingView:
    """The stages as they were last heard, and the head's own link.

    Args:
        num_stages: how many there are.
        outward: the link to stage 0.
    """

    def __init__(self, num_stages: int, outward: LinkSender) -> None:
        self._num_stages = num_stages
        self._outward = outward
        self._pulse = Pulse()
        self._awaited_at = time.monotonic()
        self._heard: tuple[float, tuple[StageStatus, ...]] = (self._awaited_at, ())

    def hear(self, stages: tuple[StageStatus, ...]) -> None:
        """Take in a report; called where nothing may wait."""
        self._heard = time.monotonic(), stages

    def rest(self) -> None:
        """Nothing is asked of the stages now: one that was never heard is not waited for."""
        self._awaited_at = time.monotonic()

    def stages(self) -> tuple[StageStatus, ...]:
        """Every stage, in order, as it was last heard of."""
        now = time.monotonic()
        heard_at, reported = self._heard
        known = {told.stage: aged(told, now - heard_at) for told in reported}
        epoch = self._outward.party.epoch
        return tuple(
            known.get(stage) or unheard(stage, epoch, now - self._awaited_at) for stage in range(self._num_stages)
        )

    def status(self, *, gathered: bool, busy: bool, stopped: bool, fault: str) -> RingStatus:
        """The whole ring.

        Args:
            gathered: whether the stages have been let in.
            busy: whether a call is open.
            stopped: whether the run is over.
            fault: what broke it; empty for nothing.
        """
        stages = self.stages()
        phase = phase_of(stages, gathered=gathered, busy=busy)
        if stopped:
            phase = STOPPED
        if fault:
            phase = BROKEN
        head = own_status(HEAD, None, self._pulse, self._outward)
        return RingStatus(
            run_id=self._outward.party.run_id,
            epoch=self._outward.party.epoch,
            phase=phase,
            fault=fault,
            stages=stages,
            head=msgspec.structs.replace(head, phase=phase),
        )


@dataclass(frozen=True)
class RingSnapshot:
    """A ring at one moment.

    Attributes:
        seats: who held each place when the roll was called last, in order.
        settled: the epoch, if the ring is whole in it and has since answered a call or had nothing to do; else None.
        fault: what broke it; None for nothing.
        wanted: whether whoever asked for the turns still wants more of them.
    """

    seats: tuple[Seat, ...]
    settled: int | None
    fault: ZppError | None = None
    wanted: bool = True
