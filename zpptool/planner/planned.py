# SPDX-License-Identifier: Apache-2.0
"""A pipeline that was planned: its stages, what each takes, and how fast it is predicted to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from zpptool.partition import LayerRange
from zpptool.planner.chain import Solution
from zpptool.planner.costs import OperatingPoint
from zpptool.planner.device_profile import Source
from zpptool.planner.devices import Host, Workload
from zpptool.planner.estimate import GIVEN, SPEC, Seconds
from zpptool.planner.places import NANO
from zpptool.planner.tables import Tables


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        host: its name.
        kind: of its devices.
        layers: its range.
        width: how many devices share it.
        weights, cache, workspace: bytes on each device.
        memory: bytes that it may take of each device.
        sequence_bytes: of the caches of one typical request, on each device.
        seconds: of one step.
        source: where the time comes from; None where nothing is known, and bytes stand for time.
    """

    host: str
    kind: str
    layers: LayerRange
    width: int
    weights: int
    cache: int
    workspace: int
    memory: int
    sequence_bytes: int
    seconds: Seconds
    source: Source | None

    @property
    def free(self) -> int:
        """Bytes that are left on each device."""
        return self.memory - self.weights - self.cache - self.workspace

    @property
    def most_sequences(self) -> int | None:
        """How many typical requests fit into its caches; None where they take nothing."""
        return (self.free + self.cache) // self.sequence_bytes if self.sequence_bytes else None


@dataclass(frozen=True)
class PlannedLink:
    """One link: how long it is busy with a step, and how much later the step arrives, in seconds."""

    origin: str
    target: str
    busy: Seconds
    delay: Seconds
    source: Source


@dataclass(frozen=True)
class Planned:
    """A pipeline.

    Attributes:
        stages, links: in order; the last link is the one back to the head.
        point: how much is in progress.
        workload: what is served.
        solution: what was found, with its bound.
        prompt_seconds: the time until a prompt has passed all stages.
    """

    stages: tuple[PlannedStage, ...]
    links: tuple[PlannedLink, ...]
    point: OperatingPoint
    workload: Workload
    solution: Solution
    prompt_seconds: float

    @property
    def period(self) -> Seconds:
        """The time between two steps."""
        times = [*(stage.seconds for stage in self.stages), *(link.busy for link in self.links)]
        return Seconds(*(max(parts) for parts in zip(*times, strict=True)))

    @property
    def latency(self) -> Seconds:
        """The time of one step all the way around."""
        times = [*(stage.seconds for stage in self.stages), *(link.delay for link in self.links)]
        return Seconds(*(sum(parts) for parts in zip(*times, strict=True)))

    @property
    def token_seconds(self) -> Seconds:
        """The time between two tokens of one answer: that of a step, or of one step for every other one in progress."""
        both = zip(self.period, self.latency, strict=True)
        return Seconds(*(max(self.point.steps * period, latency) for period, latency in both))

    @property
    def tokens_per_second(self) -> Seconds:
        """Tokens of answers, of all requests together; the low end is that of the longest times."""
        time = self.token_seconds
        return Seconds(*(self.point.sequences / max(each, 1 / NANO) for each in (time.nominal, time.high, time.low)))

    @property
    def keeps_limits(self) -> bool:
        """Whether the times to the first token and between tokens are within the limits of the workload."""
        own = self.workload
        token = own.tpot_seconds is None or self.token_seconds.nominal <= own.tpot_seconds
        return token and (own.ttft_seconds is None or self.prompt_seconds <= own.ttft_seconds)

    @property
    def most_sequences(self) -> int | None:
        """How many typical requests fit into the caches of every stage; None where they take nothing."""
        return min((most for stage in self.stages if (most := stage.most_sequences) is not None), default=None)

    @property
    def is_measured(self) -> bool:
        """Whether every number was measured."""
        sources = [*(stage.source for stage in self.stages), *(link.source for link in self.links)]
        return all(source is Source.MEASURED for source in sources)

    @property
    def has_times(self) -> bool:
        """Whether times mean seconds; otherwise bytes stand for them."""
        return all(stage.source is not None for stage in self.stages)


def planned(tables: Tables, solution: Solution, hosts: Sequence[Host], point: OperatingPoint) -> Planned:
    """Describe the chain that was found.

    Args:
        tables, solution: the problem and its answer.
        hosts: of each stage.
        point: how much is in progress.
    """
    inventory = tables.places.inventory
    stages = []
    prompts: list[float] = []
    for placed, host in zip(solution.chain, hosts, strict=True):
        costs = tables.costs[placed.option]
        option = tables.problem.options[placed.option]
        start, end = placed.start, placed.end
        prompts.append(costs.prompt_seconds(start, end))
        stages.append(
            PlannedStage(
                host.name,
                host.kind,
                LayerRange(start, end),
                option.width,
                costs.weights(start, end),
                costs.cache(start, end),
                costs.workspace,
                tables.memory[placed.option],
                costs.sequence_bytes(start, end),
                costs.seconds(start, end),
                costs.source,
            )
        )
    links = _links(tables, solution, hosts)
    workload = inventory.devices.workload
    chunks = -(-workload.prompt_tokens // tables.costs[0].chunk)
    prompt = sum(prompts) + (chunks - 1) * max(prompts) + sum(link.delay.nominal for link in links)
    return Planned(tuple(stages), links, point, workload, solution, prompt)


def _links(tables: Tables, solution: Solution, hosts: Sequence[Host]) -> tuple[PlannedLink, ...]:
    problem, places = tables.problem, tables.places
    groups = [problem.options[placed.option].group for placed in solution.chain]
    rows = [
        (a, b, problem.hops[a][b], problem.delays[a][b], origin, target)
        for (a, b), (origin, target) in zip(pairwise(groups), pairwise(hosts), strict=True)
    ]
    last, first = groups[-1], groups[0]
    back = problem.returns[last][first], problem.return_delays[last][first]
    rows.append((last, first, *back, hosts[-1], hosts[0]))
    links = []
    for a, b, busy, delay, origin, target in rows:
        link = places.link(a, b)
        assert link is not None, "a chain has no stages without a link between them"
        links.append(
            PlannedLink(origin.name, target.name, _ranged(busy, link.source), _ranged(delay, link.source), link.source)
        )
    return tuple(links)


def _ranged(time: int, source: Source) -> Seconds:
    """Seconds of a link's nanoseconds; measured links vary as little as measured layers."""
    off = {Source.MEASURED: (0.05, 0.05), Source.GIVEN: (GIVEN, GIVEN), Source.SPEC: (0.0, SPEC)}[source]
    return Seconds(time / NANO, time / NANO * (1 - off[0]), time / NANO * (1 + off[1]))
