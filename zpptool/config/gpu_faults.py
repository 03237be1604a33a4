# SPDX-License-Identifier: Apache-2.0
"""Whether this machine has the GPUs that its stages of a plan take."""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.config.gpu_plan import computes_on_cpu, machines_gpus
from zpptool.config.gpu_pool import hand_out
from zpptool.config.plan import PipelinePlan
from zpptool.errors import ZppError


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
