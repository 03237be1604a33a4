# SPDX-License-Identifier: Apache-2.0
"""Measures a model on this machine's device, and makes its profile.

All parts are loaded at once, each in a process of its own, and take turns: a step is done by one part after the other,
round by round, so that whatever else the machine does disturbs all of them alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

from zpptool.planner.device_profile import (
    ATTENTION,
    PROFILE_VERSION,
    CacheCosts,
    DeviceProfile,
    LoadRate,
    ProfiledModel,
    Source,
    TimeGrid,
    TimeSample,
    WorkspaceSample,
)
from zpptool.process.measuring import (
    BytesPerSecond,
    Loaded,
    Phase,
    Point,
    ReadRate,
    Time,
    Times,
    Workspace,
    WorkspaceBytes,
)
from zpptool.profiling.agreement import FEWEST_ROUNDS, is_stable
from zpptool.profiling.parts import PartsPlan, solve
from zpptool.profiling.processes import MeasuringProcesses

STEP, EMBEDDING, LM_HEAD, SAMPLER = "step", "embedding", "lm_head", "sampler"
"""The entries besides the types of layers."""
ASK_S = 0.05
"""A step is repeated for about so many seconds before the next part has its turn."""
MOST_REPEATS = 8
REPORT_S = 5.0
NEGLIGIBLE = 0.05
"""An entry with a smaller share of the largest part's step is not measured on until it is stable."""
Entry = tuple[str, Point]
"""The name of what was measured, and the step."""


@dataclass
class Rounds:
    """What was measured so far.

    Attributes:
        of: the values of each entry, round by round.
        largest: for each step, the longest time of a part in the last round, in seconds.
        spent: for each step, the time of all its rounds, in seconds.
    """

    of: dict[Entry, list[float]] = field(default_factory=lambda: defaultdict(list))
    largest: dict[Point, float] = field(default_factory=dict)
    spent: dict[Point, float] = field(default_factory=lambda: defaultdict(float))

    def count(self, point: Point) -> int:
        """How many rounds of a step there were."""
        return len(self.of.get((STEP, point), ()))

    def done(self, point: Point) -> bool:
        """Whether a step needs no more rounds."""
        if self.count(point) < FEWEST_ROUNDS:
            return False
        entries = [values for (_name, at), values in self.of.items() if at == point]
        least = NEGLIGIBLE * self.largest[point]
        return all(is_stable(values) for values in entries if median(values) > least)


def measure_times(
    processes: MeasuringProcesses,
    plan: PartsPlan,
    points: Sequence[Point],
    seconds: float,
    report: Callable[[str], None],
) -> Rounds:
    """Do the steps round by round until all entries are stable, or the time is over.

    Every step gets one round, however little time there is. After that each gets the same share of the time, so the
    short ones are soon stable and leave their share to the others.

    Args:
        processes: those of the parts, in the order of the plan; the parts are loaded.
        plan: the parts.
        points: the steps.
        seconds: how long to measure.
        report: takes a line about the progress, every few seconds.
    """
    rounds = Rounds()
    began = reported = time.monotonic()
    for point in points:
        _warm_up(processes, plan, point)
        _one_round(processes, plan, point, rounds)
    while pending := [point for point in points if not rounds.done(point)]:
        now_s = time.monotonic()
        if now_s - began > seconds:
            break
        if now_s - reported > REPORT_S:
            reported = now_s
            stable = sum(is_stable(values) for values in rounds.of.values())
            report(f"{stable} of {len(rounds.of)} numbers are stable, {began + seconds - now_s:.0f} s left")
        _one_round(processes, plan, min(pending, key=lambda point: rounds.spent[point]), rounds)
    return rounds


def _warm_up(processes: MeasuringProcesses, plan: PartsPlan, point: Point) -> None:
    """Do a step once: the first one of a kind may compile and allocate, and is not counted."""
    for part in range(len(plan.parts)):
        processes.asked(part, Time(point, 1), Times)


def _one_round(processes: MeasuringProcesses, plan: PartsPlan, point: Point, rounds: Rounds) -> None:
    """Have each part do a step, a short one several times; every other round in the opposite order."""
    began = time.monotonic()
    repeats = min(max(int(ASK_S / rounds.largest.get(point, ASK_S)), 1), MOST_REPEATS)
    order = list(range(len(plan.parts)))
    if rounds.count(point) % 2:
        order.reverse()
    forward = [0.0] * len(order)
    for part in order:
        times = processes.asked(part, Time(point, repeats), Times)
        forward[part] = median(times.forward)
        if part == plan.last:
            rounds.of[SAMPLER, point].append(median(times.sampling))
    found = solve(plan, forward)
    for kind, value in found.layers.items():
        rounds.of[kind, point].append(value)
    rounds.of[STEP, point].append(found.step)
    rounds.of[EMBEDDING, point].append(found.embedding)
    rounds.of[LM_HEAD, point].append(found.lm_head)
    rounds.largest[point] = max(forward)
    rounds.spent[point] += time.monotonic() - began


def measure_workspace(
    processes: MeasuringProcesses, parts: int, tokens: Sequence[int], at: str
) -> tuple[WorkspaceSample, ...]:
    """The memory of the part that needs the most besides weights and cache, for each number of tokens."""
    samples = []
    for count in tokens:
        needed = [processes.asked(part, Workspace(count), WorkspaceBytes).bytes for part in range(parts)]
        samples.append(WorkspaceSample(max_num_batched_tokens=count, bytes=max(needed), source=Source.MEASURED, at=at))
    return tuple(samples)


def measure_load(processes: MeasuringProcesses, loaded: Sequence[Loaded], at: str) -> LoadRate:
    """How fast the part with the most weights reads them."""
    largest = max(range(len(loaded)), key=lambda part: loaded[part].weight_bytes)
    rate = processes.asked(largest, ReadRate(), BytesPerSecond).rate
    return LoadRate(bytes_per_second=rate, source=Source.MEASURED, at=at)


def profile_of(
    rounds: Rounds,
    plan: PartsPlan,
    *,
    device: str,
    engine: str,
    model: ProfiledModel,
    workspace: tuple[WorkspaceSample, ...],
    load: LoadRate,
    cache: CacheCosts | None,
    at: str,
) -> DeviceProfile:
    """The profile, from what was measured."""
    grids = _grids(rounds.of, at)
    own = dict.fromkeys(plan.types)
    return DeviceProfile(
        version=PROFILE_VERSION,
        device=device,
        engine=engine,
        model=model,
        layer_types=plan.types if set(own) != {ATTENTION} else (),
        layers={kind: grids[kind] for kind in own},
        step=grids[STEP],
        embedding=grids[EMBEDDING],
        lm_head=grids[LM_HEAD],
        sampler=grids[SAMPLER],
        workspace=workspace,
        load=load,
        kv=cache,
    )


def _grids(values: Mapping[Entry, Sequence[float]], at: str) -> dict[str, TimeGrid]:
    samples: dict[str, dict[Phase, list[TimeSample]]] = defaultdict(lambda: {phase: [] for phase in Phase})
    for (name, point), rounds in values.items():
        samples[name][point.phase].append(
            TimeSample(
                tokens=point.tokens,
                sequences=point.sequences,
                context=point.context,
                seconds=median(rounds),
                source=Source.MEASURED,
                at=at,
                stable=is_stable(rounds),
            )
        )
    return {
        name: TimeGrid(prefill=tuple(own[Phase.PREFILL]), decode=tuple(own[Phase.DECODE]))
        for name, own in samples.items()
    }


def now() -> str:
    """The time of a measurement, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
