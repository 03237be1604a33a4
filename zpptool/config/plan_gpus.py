# SPDX-License-Identifier: Apache-2.0
"""Which GPUs of its host each stage of a plan takes, by number, and whether this machine has enough. Pure but for that.

The stages of a host that compute on GPUs take the next ones in stage order, one for each tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.config.gpu_plan import computes_on_cpu, machines_gpus
from zpptool.config.gpu_pool import hand_out
from zpptool.config.plan import PipelinePlan, PlannedStage
from zpptool.config.runs_on import AUTO
from zpptool.errors import ZppError


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


def gpu_faults(plan: PipelinePlan, here: Sequence[int]) -> list[str]:
    """Why this machine's GPUs cannot compute its stages of a plan, as `run-stage` would refuse it; empty if they can.

    Args:
        plan: the plan.
        here: the stages that are on this machine.
    """
    faults = []
    for place in (plan.stages[stage] for stage in here):
        if computes_on_cpu(place.runs_on.device):
            continue
        try:
            hand_out(machines_gpus(), [place.tensor_parallel_size], ())
        except ZppError as fault:
            faults.append(fault.message.replace("stage 0 takes", f"stage {place.stage} takes"))
    return faults
