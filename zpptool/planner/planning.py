# SPDX-License-Identifier: Apache-2.0
"""Plan a pipeline for a model on given devices: the hosts, the layers of each, and how many requests at once.

How long a step takes depends on its batch, and that on the number of stages, among which the requests in progress are
divided. So the best chain is searched for several numbers of stages and of requests, and the fastest of them is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange
from zpptool.planner.chain import Effort, NoChain, Solution, best_chain
from zpptool.planner.costs import Model, OperatingPoint
from zpptool.planner.devices import Inventory
from zpptool.planner.places import NANO, InForce, Places, group_hosts, hosts_of_stages
from zpptool.planner.planned import Planned, planned
from zpptool.planner.round import best_round
from zpptool.planner.tables import Tables, make_tables

ALL_STAGE_COUNTS = 8
"""Up to how many devices every number of stages is tried; of more, ever larger steps."""
ROUNDING = 1e-6
"""Times are planned in whole nanoseconds, so a smaller gap is none."""
AS_FAST = 0.005
"""A part of the rate that is less than any measurement is exact."""
LARGE = 20_000
"""From how many possible stages on a problem is large, and fewer numbers of stages and of requests are tried."""
LARGE_EFFORT = Effort(steps=20_000, reached=5_000)
"""How much is searched for each of them."""


@dataclass(frozen=True)
class Answer:
    """The best plan that was found.

    Attributes:
        pipelines: the plan: one pipeline, or several.
        tried: the numbers of stages and of requests that were tried.
        rate_bound: tokens per second that no plan with a number of stages and requests that was tried exceeds.
    """

    pipelines: tuple[Planned, ...]
    tried: tuple[OperatingPoint, ...]
    rate_bound: float

    @property
    def best(self) -> Planned:
        """The pipeline, or the first of several."""
        return self.pipelines[0]

    @property
    def rate(self) -> float:
        """Tokens per second of all pipelines together."""
        return sum(plan.tokens_per_second.nominal for plan in self.pipelines)

    @property
    def gap(self) -> float:
        """By which part the rate might be higher at most; 0 where it is proven to be the highest."""
        gap = self.rate_bound / self.rate - 1
        return gap if gap > ROUNDING else 0.0


def make_answer(
    inventory: Inventory,
    model: Model,
    *,
    in_force: InForce | None = None,
    most_stages: int | None = None,
    effort: Effort = Effort(),
) -> Answer:
    """Find the best plan.

    Args:
        inventory: the devices, and what is to be served.
        model: the model.
        in_force: what each host holds now; of equally good plans the one that moves less is chosen.
        most_stages: the most stages that the pipeline may have.
        effort: how much is searched.

    Raises:
        ZppError: (FAILURE) the model does not fit, with the deficit of the best attempt, or no plan keeps the limits;
            (INVALID) profiles do not fit the model.
    """
    held = in_force or {}
    places = group_hosts(inventory, held)
    found: list[Planned] = []
    tried: list[OperatingPoint] = []
    bound = 0.0
    limit = min(most_stages or sum(places.counts), sum(places.counts), len(model.weights.cuts) - 1)
    large = len(places.groups) * model.weights.num_layers**2 > LARGE
    effort = LARGE_EFFORT if large and effort == Effort() else effort
    for sequences in _request_counts(inventory.devices.workload.concurrency):
        if large and found:
            break  # fewer requests serve less, unless the caches of more do not fit
        waiting = stage_counts(limit, large=large)
        while waiting:
            point = OperatingPoint(sequences, waiting.pop())
            if point in tried:
                continue
            tried.append(point)
            tables = make_tables(inventory, places, model, point, held)
            around = best_round(tables.problem, point.steps, effort)
            if isinstance(around, NoChain):
                if point.in_flight == limit:
                    break  # with fewer stages it does not fit either
                continue
            stages = len(around.solution.chain)
            if stages < point.in_flight:
                waiting.append(stages)
                continue
            found.append(_described(tables, around.solution, point, held))
            bound = max(bound, sequences * NANO / max(1, around.bound))
    if not found:
        raise _lacking(inventory, model, places, held, limit)
    return Answer((_chosen(_within_limits(found)),), tuple(tried), bound)


def _described(tables: Tables, solution: Solution, point: OperatingPoint, held: InForce) -> Planned:
    groups = [tables.problem.options[stage.option].group for stage in solution.chain]
    ranges = [LayerRange(stage.start, stage.end) for stage in solution.chain]
    hosts = hosts_of_stages(tables.places, groups, ranges, held)
    return planned(tables, solution, hosts, point)


def _chosen(found: list[Planned]) -> Planned:
    """The fastest plan; of those that are as fast as makes no difference, one that serves the most requests at once."""
    fastest = max(plan.tokens_per_second.nominal for plan in found)
    close = [plan for plan in found if plan.tokens_per_second.nominal >= fastest * (1 - AS_FAST)]
    most = max(plan.point.sequences for plan in close)
    return min((plan for plan in close if plan.point.sequences == most), key=_rank)


def _rank(plan: Planned) -> tuple[float, float, int, int]:
    moved = plan.solution.value.moved
    return -plan.tokens_per_second.nominal, plan.latency.nominal, len(plan.stages), moved


def _request_counts(wanted: int) -> Iterator[int]:
    """The numbers of requests to try: all of them, and, as their caches may not fit everywhere, fewer."""
    while wanted:
        yield wanted
        wanted //= 2


def stage_counts(limit: int, *, large: bool = False) -> list[int]:
    """The numbers of stages to try, up to a limit; of a large problem only its halves."""
    if large:
        return sorted({max(1, limit >> halved) for halved in range(limit.bit_length())})
    counts = list(range(1, max(1, min(limit, ALL_STAGE_COUNTS)) + 1))
    while counts[-1] < limit:
        counts.append(min(limit, counts[-1] * 3 // 2))
    return counts


def _within_limits(found: list[Planned]) -> list[Planned]:
    """The plans that keep the limits of the workload.

    Raises:
        ZppError: (FAILURE) there is none; the message says how close the best of them comes.
    """
    workload = found[0].workload
    limits: list[tuple[float | None, str, Callable[[Planned], float]]] = [
        (workload.tpot_seconds, "between two tokens", lambda plan: plan.token_seconds.nominal),
        (workload.ttft_seconds, "until the first token", lambda plan: plan.prompt_seconds),
        (1 / workload.rate if workload.rate else None, "between two requests", _request_seconds),
    ]
    kept = found
    for limit, words, time in limits:
        if limit is None:
            continue
        within = [plan for plan in kept if time(plan) <= limit]
        if not within:
            closest = min(map(time, kept))
            raise ZppError(
                f"no plan keeps the limit of {limit:.4g} s {words}: the best of them takes {closest:.4g} s",
                "Raise the limit, lower concurrency, or add devices.",
            )
        kept = within
    return kept


def _request_seconds(plan: Planned) -> float:
    return plan.workload.answer_tokens / plan.tokens_per_second.nominal


def _lacking(inventory: Inventory, model: Model, places: Places, held: InForce, limit: int) -> ZppError:
    """Why nothing fits: how many bytes the best attempt lacks, for one request at a time."""
    tables = make_tables(inventory, places, model, OperatingPoint(1, limit), held)
    problem = tables.lacking()
    solution = best_chain(problem)
    if isinstance(solution, NoChain):
        return ZppError(
            "no chain of linked hosts covers the model: pins, missing links, or layers that share state prevent it",
            "Give links between the hosts in devices.yaml, or remove pins and exclusions.",
            ExitCode.FAILURE,
        )
    attempt = _described(tables, solution, OperatingPoint(1, limit), held)
    lacks = [(stage, max(0, -stage.free)) for stage in attempt.stages]
    rows = [{"host": stage.host, "layers": list(stage.layers), "deficit_bytes": lack} for stage, lack in lacks if lack]
    worst, most = max(lacks, key=lambda item: item[1])
    fault = ZppError(
        f"the model does not fit: the best attempt lacks {most} bytes on host {worst.host} for layers {worst.layers}, "
        f"and {sum(lack for _stage, lack in lacks)} bytes in all",
        "Add devices or memory, lower max_model_len, or take a smaller model.",
        ExitCode.FAILURE,
    )
    return fault.with_details({"deficit_bytes": most, "stages": rows})
