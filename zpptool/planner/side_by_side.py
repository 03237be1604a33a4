# SPDX-License-Identifier: Apache-2.0
"""Several whole pipelines for a model on given devices, where they serve more together than one does.

The requests are divided evenly among the pipelines; each holds the caches of its own.
"""

from __future__ import annotations

from dataclasses import replace

from zpptool.partition import LayerRange
from zpptool.planner.chain import Effort, NoChain, Solution
from zpptool.planner.costs import Model, OperatingPoint
from zpptool.planner.devices import Inventory
from zpptool.planner.pipelines import Pipelines, best_pipelines
from zpptool.planner.places import InForce, group_hosts, hosts_of_stages
from zpptool.planner.planned import Planned, planned
from zpptool.planner.planning import Answer, make_answer, stage_counts
from zpptool.planner.problem import value
from zpptool.planner.tables import Tables, make_tables

SIDE_BY_SIDE_EFFORT = Effort(steps=20_000, reached=4_000)
"""How much is searched for each chain that is tried in several pipelines."""


def make_answers(
    inventory: Inventory, model: Model, *, in_force: InForce | None = None, most_stages: int | None = None
) -> Answer:
    """Find the best plan of up to as many pipelines as the inventory allows.

    Args:
        inventory, model, in_force, most_stages: as for `make_answer`.

    Raises:
        ZppError: (FAILURE), (INVALID) as `make_answer`; (USAGE) several pipelines are allowed without highspy.
    """
    single = make_answer(inventory, model, in_force=in_force, most_stages=most_stages)
    best = single
    held = in_force or {}
    places = group_hosts(inventory, held)
    devices = sum(places.counts)
    for number in range(2, min(inventory.devices.most_pipelines, devices) + 1):
        sequences = max(1, inventory.devices.workload.concurrency // number)
        for in_flight in stage_counts(min(most_stages or devices, devices - 1, len(model.weights.cuts) - 1)):
            point = OperatingPoint(sequences, in_flight)
            tables = make_tables(inventory, places, model, point, held)
            found = best_pipelines(tables.problem, number, SIDE_BY_SIDE_EFFORT, point.steps)
            if isinstance(found, NoChain) or len(found.chains) < 2:
                continue
            plans = _described(tables, found, point, held)
            answer = Answer(plans, (*best.tried, point), best.rate_bound)
            if answer.rate > best.rate and all(plan.keeps_limits for plan in plans):
                bound = max(best.rate_bound, answer.rate * (1 + found.gap))
                best = replace(answer, rate_bound=bound)
    return best


def _described(tables: Tables, found: Pipelines, point: OperatingPoint, held: InForce) -> tuple[Planned, ...]:
    """The pipelines with a host for each stage; no device is taken twice."""
    stages = [stage for chain in found.chains for stage in chain]
    groups = [tables.problem.options[stage.option].group for stage in stages]
    ranges = [LayerRange(stage.start, stage.end) for stage in stages]
    hosts = hosts_of_stages(tables.places, groups, ranges, held)
    plans = []
    for chain in found.chains:
        own, hosts = hosts[: len(chain)], hosts[len(chain) :]
        reached = value(tables.problem, chain)
        plans.append(planned(tables, Solution(chain, reached, reached.period, 0, False), own, point))
    return tuple(plans)
