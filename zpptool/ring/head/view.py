# SPDX-License-Identifier: Apache-2.0
"""What the head knows of the ring: the last reports of the stages, with their ages."""

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
    """The last reports of the stages, and the head's own link.

    Args:
        num_stages: how many stages there are.
        downstream: the link to stage 0.

    Attributes:
        num_stages: how many stages there are.
    """

    def __init__(self, num_stages: int, downstream: LinkSender) -> None:
        self.num_stages = num_stages
        self._downstream = downstream
        self._pulse = Pulse()
        self._awaited_at = time.monotonic()
        self._reported: tuple[float, tuple[StageStatus, ...]] = (self._awaited_at, ())

    def update(self, stages: tuple[StageStatus, ...]) -> None:
        """Take in a report of stages, which replaces the one before. Does not wait."""
        self._reported = time.monotonic(), stages

    def expect_reports_from_now(self) -> None:
        """No step is under way: the age of a stage that has never reported counts from now."""
        self._awaited_at = time.monotonic()

    def stages(self) -> tuple[StageStatus, ...]:
        """Every stage, in order, by its last report."""
        now = time.monotonic()
        reported_at, reported = self._reported
        known = {status.stage: aged(status, now - reported_at) for status in reported}
        epoch = self._downstream.party.epoch
        return tuple(
            known.get(stage) or unheard(stage, epoch, now - self._awaited_at) for stage in range(self.num_stages)
        )

    def status(self, *, gathered: bool, busy: bool, stopped: bool, fault: str) -> RingStatus:
        """The whole ring.

        Args:
            gathered: whether the stages have been admitted.
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
        head = own_status(HEAD, None, self._pulse, self._downstream)
        return RingStatus(
            run_id=self._downstream.party.run_id,
            epoch=self._downstream.party.epoch,
            phase=phase,
            fault=fault,
            stages=stages,
            head=msgspec.structs.replace(head, phase=phase),
        )


@dataclass(frozen=True)
class RingSnapshot:
    """A ring at one moment.

    Attributes:
        seats: which process held each place in the last roll call, in order.
        settled: the epoch, if the ring is whole in it and has since answered a call or been idle; else None.
        fault: what broke it; None for nothing.
        client_connected: whether the client of a planned change is still connected; set by the change server.
    """

    seats: tuple[Seat, ...]
    settled: int | None
    fault: ZppError | None = None
    client_connected: bool = True
