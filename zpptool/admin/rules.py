# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a running ring: pure rules, each of which refuses in words and names the nearest thing."""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.admin import change_types as ch
from zpptool.errors import invalid_error, usage_error
from zpptool.partition import LayerRange, Partition, check_ranges
from zpptool.ring.messages import StageFacts


def refuse_where_nothing_recovers(may_recover: bool) -> None:
    """Refuse a change of a ring that does not outlive that a stage leaves.

    Raises:
        ZppError: (USAGE) it is one.
    """
    if not may_recover:
        raise usage_error(
            "this pipeline runs with --recovery-deadline 0: no stage can leave it and come again",
            "Stop it, which answers what is under way, and start it anew; with --recovery-deadline S next time.",
        )


def refuse_what_cannot_move(request: ch.Replace, num_stages: int, plan_digest: str) -> None:
    """Refuse to move what cannot be moved, before anything is touched.

    Raises:
        ZppError: (USAGE) or (INVALID) it cannot be.
    """
    if not 0 < request.stage < num_stages:
        raise usage_error(f"stage {request.stage} of {num_stages} cannot be moved", "Stage 0 stays with the head.")
    refuse_another_plan(request.plan_digest, plan_digest)


def refuse_another_plan(named: str, plan_digest: str) -> None:
    """Refuse a change that is asked for with another plan than the pipeline's, or without it.

    Raises:
        ZppError: (INVALID) it is.
    """
    if named != plan_digest:
        started = f"from a plan with the digest {plan_digest}" if plan_digest else "without a plan"
        raise invalid_error(
            f"this pipeline was started {started}, and {'another one' if named else 'none'} is named",
            "Name the file that its stages were started from with --plan." if plan_digest else "Leave out --plan.",
        )


def new_partition(ranges: Sequence[str], facts: Sequence[StageFacts]) -> Partition:
    """The layer ranges that a pipeline of these stages is to have.

    Raises:
        ZppError: (INVALID) they are none, every fault told, or no change; (USAGE) their number is another, or stages
            have no other layers than their own.
    """
    if len(ranges) != len(facts):
        raise usage_error(
            f"{len(ranges)} ranges are given for {len(facts)} stages: the number of stages cannot change while it runs",
            "Stop the pipeline, which answers what is under way, and start it anew with other stages.",
        )
    read, faults = check_ranges(list(ranges), facts[-1].layers[1], len(facts))
    if faults:
        raise invalid_error("; ".join(fault.message for fault in faults))
    partition = tuple(read)
    now = tuple(LayerRange(*own.layers) for own in facts)
    if partition == now:
        raise invalid_error(f"the layers are {' '.join(map(str, now))} already")
    changed = [own for own, new in zip(facts, partition, strict=True) if own.layers != (new.start, new.end)]
    fixed = [str(own.stage) for own in changed if not own.movable]
    if fixed:
        raise usage_error(
            f"stage {', '.join(fixed)} was started from its own directory, which holds no other layers",
            "Split the model anew with these ranges, stop the pipeline and start it from there; stages that read the"
            " full checkpoint can be rebalanced while they run.",
        )
    return partition
