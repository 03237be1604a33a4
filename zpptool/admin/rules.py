# SPDX-License-Identifier: Apache-2.0
"""Which planned changes are possible: pure rules, each of which refuses with a reason and names an alternative."""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.admin.change_types import Replace
from zpptool.errors import invalid_error, usage_error
from zpptool.partition import LayerRange, Partition, check_ranges
from zpptool.ring.messages import StageFacts


def refuse_where_nothing_recovers(may_recover: bool) -> None:
    """Refuse a change of a ring that does not survive a stage's leaving.

    Raises:
        ZppError: (USAGE) it does not.
    """
    if not may_recover:
        raise usage_error(
            "this pipeline runs with --recovery-deadline 0: no stage can leave it and restart",
            "Stop it, which completes the requests under way, and start it anew, with --recovery-deadline S.",
        )


def refuse_what_cannot_move(request: Replace, num_stages: int, plan_digest: str) -> None:
    """Refuse to move a place that cannot move, before anything is changed.

    Raises:
        ZppError: (USAGE) there is no such stage, or it is stage 0; (INVALID) the plan is another.
    """
    if not 0 < request.stage < num_stages:
        raise usage_error(f"stage {request.stage} of {num_stages} cannot be moved", "Stage 0 stays with the head.")
    refuse_another_plan(request.plan_digest, plan_digest)


def refuse_another_plan(named: str, plan_digest: str) -> None:
    """Refuse a change that is requested with another plan than the pipeline's, or without it.

    Args:
        named: the digest of the plan in the request; empty for none.
        plan_digest: of the plan that the pipeline was started from; empty for none.

    Raises:
        ZppError: (INVALID) they differ.
    """
    if named != plan_digest:
        started = f"from a plan with the digest {plan_digest}" if plan_digest else "without a plan"
        raise invalid_error(
            f"this pipeline was started {started}, and {'another one' if named else 'none'} is named",
            "Name the file that its stages were started from with --plan." if plan_digest else "Leave out --plan.",
        )


def new_partition(ranges: Sequence[str], facts: Sequence[StageFacts]) -> Partition:
    """The requested layer ranges, checked.

    Args:
        ranges: written `0-8`, one for each stage.
        facts: of the stages that run now.

    Raises:
        ZppError: (INVALID) they are malformed or do not cover the model (all faults are named), or change nothing;
            (USAGE) their number is not that of the stages, or a stage cannot load other layers.
    """
    if len(ranges) != len(facts):
        raise usage_error(
            f"{len(ranges)} ranges are given for {len(facts)} stages: the number of stages cannot change while it runs",
            "Stop the pipeline, which completes the requests under way, and start it anew with other stages.",
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
