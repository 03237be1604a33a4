# SPDX-License-Identifier: Apache-2.0
"""The stages that answered the last roll call, and what the head requires of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpptool.ring.head.roll_call import disagreements
from zpptool.ring.messages import StageFacts


class Roster:
    """Written by the head's receiving thread, apart from `required`, which is set before that thread starts.

    Args:
        num_stages: how many stages the ring has.
        num_layers: how many layers the model has.

    Attributes:
        num_stages: how many stages the ring has.
        required: what has to be the same on every stage, by name.
        stages: the facts of the stages that were admitted last, in order; empty before the first admission.
    """

    def __init__(self, num_stages: int, num_layers: int) -> None:
        self._num_layers = num_layers
        self.num_stages = num_stages
        self.required: Mapping[str, str] = {}
        self.stages: tuple[StageFacts, ...] = ()

    def reasons_to_refuse(self, stages: Sequence[StageFacts]) -> list[str]:
        """Why these stages do not make one pipeline; empty if they do."""
        return disagreements(self.num_stages, self._num_layers, self.required, stages)
