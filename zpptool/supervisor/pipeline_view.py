# SPDX-License-Identifier: Apache-2.0
"""A supervised pipeline at one moment: what its supervisor shows to other threads."""

from __future__ import annotations

from dataclasses import dataclass

from zpptool.config.stage_spec import StageSpec
from zpptool.net.addresses import url_host
from zpptool.ring.status import RECOVERING, RingStatus
from zpptool.supervisor import lifecycle as lc


@dataclass(frozen=True)
class ProcessView:
    """One process of a pipeline, as its parent sees it.

    Attributes:
        name: `stage 1`, `head`.
        pid: its process id.
        phase: what it reports itself, before the ring knows it.
        running: whether it has not ended.
    """

    name: str
    pid: int
    phase: str
    running: bool


@dataclass(frozen=True)
class PipelineView:
    """A pipeline at one moment.

    Attributes:
        state: its state.
        specs: of this run's stages; none before the first.
        processes: this run's, in the order of their start.
        restarts: how many times it, or a part of it, was started after the first.
        ring: its head's status of the ring; None where it reports none.
        spares: how many spare processes are ready.
    """

    state: lc.State
    specs: tuple[StageSpec, ...]
    processes: tuple[ProcessView, ...]
    restarts: int
    ring: RingStatus | None = None
    spares: int = 0

    @property
    def url(self) -> str:
        """The base of the head's API; empty before the first start."""
        return f"http://{url_host(self.specs[0].api_host)}:{self.specs[0].api_port}" if self.specs else ""

    @property
    def is_recovering(self) -> bool:
        """Whether its ring has lost something, though perhaps no process."""
        return self.ring is not None and self.ring.phase == RECOVERING

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.state.phase is lc.Phase.READY and not self.is_recovering
