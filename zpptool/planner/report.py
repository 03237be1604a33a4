# SPDX-License-Identifier: Apache-2.0
"""A plan and its reasons as one JSON object, which the command prints and the picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zpptool.planner.device_profile import Source
from zpptool.planner.estimate import Seconds
from zpptool.planner.explain import Price, cache_limit, limits
from zpptool.planner.planned import Planned, PlannedStage
from zpptool.planner.planning import Answer


def report(answer: Answer, prices: Sequence[Price], number: int = 1) -> dict[str, Any]:
    """The plan of one pipeline as a JSON object.

    Predicted times are left out where nothing is known of the devices' speed.

    Args:
        answer: the plan.
        prices: what more of something would bring.
        number: which pipeline, from 1.
    """
    plan = answer.pipelines[number - 1]
    known = plan.has_times
    first, *others = limits(plan)
    full = cache_limit(plan)
    return {
        "planned_from": _basis(plan),
        "stages": [_stage(plan, number, stage) for number, stage in enumerate(plan.stages)],
        "links": [
            {
                "from": link.origin,
                "to": link.target,
                "busy_seconds": link.busy.nominal,
                "delay_seconds": link.delay.nominal,
                "source": link.source,
            }
            for link in plan.links
        ],
        "requests": {
            "wanted": plan.workload.concurrency,
            "planned": plan.point.sequences,
            "fit": plan.most_sequences,
            "in_one_step": -(-plan.point.sequences // plan.point.steps),
        },
        "predicted": {
            "period_seconds": _ranged(plan.period),
            "token_seconds": _ranged(plan.token_seconds),
            "first_token_seconds": plan.prompt_seconds,
            "tokens_per_second": _ranged(plan.tokens_per_second),
        }
        if known
        else None,
        "binding": f"the caches of stage {plan.stages.index(full)} on {full.host}" if full else first.name,
        "next": [{"name": limit.name, "share": limit.share} for limit in ([first, *others] if full else others)[:3]],
        "prices": [{"change": price.change, "gain": price.gain} for price in prices],
        "gap": answer.gap,
        "pipeline": number,
        "pipelines": [
            {
                "hosts": [stage.host for stage in own.stages],
                "tokens_per_second": own.tokens_per_second.nominal if known else None,
            }
            for own in answer.pipelines
        ],
        "unmeasured": _unmeasured(plan),
        "tried": [{"requests": point.sequences, "stages": point.in_flight} for point in answer.tried],
    }


def _stage(plan: Planned, number: int, stage: PlannedStage) -> dict[str, Any]:
    return {
        "stage": number,
        "host": stage.host,
        "kind": stage.kind,
        "layers": [stage.layers.start, stage.layers.end],
        "tensor_parallel_size": stage.width,
        "weight_bytes": stage.weights,
        "cache_bytes": stage.cache,
        "workspace_bytes": stage.workspace,
        "free_bytes": stage.free,
        "memory_bytes": stage.memory,
        "requests_that_fit": stage.most_sequences,
        "seconds": _ranged(stage.seconds) if stage.source is not None else None,
        "share": stage.seconds.nominal / (plan.period.nominal or 1.0),
        "source": stage.source,
    }


def _ranged(time: Seconds) -> dict[str, float]:
    return {"expected": time.nominal, "lowest": time.low, "highest": time.high}


def _basis(plan: Planned) -> str:
    if not plan.has_times:
        return "bytes"
    return "measurements" if plan.is_measured else "numbers that were not all measured"


def _unmeasured(plan: Planned) -> list[str]:
    """What was not measured on this plan's devices and links, each with where it comes from."""
    named = {f"times of kind {stage.kind}": stage.source for stage in plan.stages}
    named |= {f"the link from {link.origin} to {link.target}": link.source for link in plan.links}
    words = {None: "unknown", Source.GIVEN: "given", Source.SPEC: "from a data sheet"}
    return [f"{name} ({words[source]})" for name, source in named.items() if source is not Source.MEASURED]
