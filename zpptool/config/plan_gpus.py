# SPDX-License-Identifier: Apache-2.0
"""Which GPUs of its host each stage of a plan takes, by number. Pure.

The stages of a host that compute on GPUs take the next ones in stage order, one for each tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.config.plan import PlannedStage
from zpptool.config.runs_on import AUTO


def gpu_ranks(place: PlannedStage, default: str) -> int:
    """How many GPUs a stage takes.

    Args:
        place: the stage.
        default: its device, where the plan leaves it open.
    """
    device = default if place.runs_on.device == AUTO else place.runs_on.device
    return 0 if device == "cpu" else place.tensor_parallel_size


def gpus_on_host(places: Sequence[PlannedStage], default: str) -> dict[int, tuple[int, ...]]:
    """The numbers of the GPUs of each stage, by stage; empty for one that computes on the CPU.

    Args:
        places: the stages of one host, in order.
        default: as for `gpu_ranks`.
    """
    taken, found = 0, {}
    for place in places:
        ranks = gpu_ranks(place, default)
        found[place.stage] = tuple(range(taken, taken + ranks))
        taken += ranks
    return found
