# SPDX-License-Identifier: Apache-2.0
"""The time limits of a place in the ring, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RingTimeouts:
    """How long a place in the ring waits for others.

    Attributes:
        start_s: for the roll call to go round, and for the neighbours and the verdict before it.
        step_s: for the answer to a call without a limit of its own, for the tensors of a step, and for a neighbour to
            accept a message.
        beat_s: a main loop without progress at a step, or a stage without a report, for this long is taken to hang.
        recovery_s: for a lost stage to come back; 0 where a loss ends the run.
    """

    start_s: float
    step_s: float
    beat_s: float = 60.0
    recovery_s: float = 0.0

    @property
    def survives_losses(self) -> bool:
        """Whether the loss of a stage begins a new epoch; otherwise it ends the run."""
        return self.recovery_s > 0
