# SPDX-License-Identifier: Apache-2.0
"""How good the planner's answers are, how long they take, and how much memory: `python benchmarks/planner.py`.

`--json` prints one object. The published instances are those of Helix (tests/data/helix.json names source and licence);
the random ones are compared with the tests' own solvers (tests/planning.py).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from planning import brute_force, least_period, random_problem  # noqa: E402

from zpptool.planner.chain import NoChain, best_chain  # noqa: E402
from zpptool.planner.pipelines import Pipelines, best_pipelines  # noqa: E402
from zpptool.planner.problem import NEVER, Problem, StageOption  # noqa: E402

UNIT = 10**15
"""Published rates are turned into whole numbers of time by this."""
LAYERS, KINDS, OF_EACH = 128, 8, 8


def published_problem(instance: dict[str, Any]) -> Problem:
    """A published instance: nodes of several types, whose rate depends on how many layers they hold, and free links."""
    count, types = instance["layers"], instance["device_types"]
    flat = [0] * (count + 1)
    options = []
    for group, own in enumerate(types):
        times = {int(held): round(UNIT / rate) for held, rate in own["capacity_by_layers"].items()}
        table = [[times.get(end - start, NEVER) for end in range(count + 1)] for start in range(count + 1)]
        options.append(StageOption(group, 1, table, flat))
    free = [[0] * len(types) for _ in types]
    nodes = tuple(own["nodes"] for own in types)
    return Problem(count, nodes, tuple(options), free, free, free, free, sum(nodes))


def large_problem(seed: int, *, uneven: bool, linked: bool) -> Problem:
    """64 devices of 8 kinds and 128 layers: of equal or uneven layers, over free links or slow ones between kinds."""
    rng = random.Random(seed)
    work = [rng.randint(80, 120) if uneven else 100 for _ in range(LAYERS)]
    size = [rng.randint(80, 120) if uneven else 100 for _ in range(LAYERS)]
    work_to, size_to = [0, *accumulate(work)], [0, *accumulate(size)]
    options = []
    for group in range(KINDS):
        speed, memory = rng.uniform(1, 8), rng.uniform(2, 10) * 100
        table = [[NEVER] * (LAYERS + 1) for _ in range(LAYERS + 1)]
        for start in range(LAYERS):
            for end in range(start + 1, LAYERS + 1):
                head = 150 if end == LAYERS else 0
                if size_to[end] - size_to[start] + head <= memory:
                    done = work_to[end] - work_to[start] + head + (20 if start == 0 else 0)
                    table[start][end] = int(1000 + done * 1000 / speed)
        options.append(StageOption(group, 1, table, [0] * (LAYERS + 1)))
    kinds = range(KINDS)
    hops = [[0 if not linked else 500 if a == b else rng.randint(500, 60_000) for b in kinds] for a in kinds]
    free = [[0] * KINDS for _ in kinds]
    return Problem(LAYERS, (OF_EACH,) * KINDS, tuple(options), hops, hops, free, free, KINDS * OF_EACH)


def two_regions(devices: int, layers: int, slow: int) -> Problem:
    """Two regions of equal devices; a step takes `slow` from one to the other."""
    rng = random.Random(devices)
    work = [0, *accumulate(rng.randint(8, 12) for _ in range(layers))]
    table = [[work[b] - work[a] if b > a else NEVER for b in range(layers + 1)] for a in range(layers + 1)]
    options = tuple(StageOption(group, 1, table, [0] * (layers + 1)) for group in (0, 1))
    hops = [[1, slow], [slow, 1]]
    return Problem(layers, (devices, devices), options, hops, hops, hops, hops, 2 * devices)


def solved(name: str, problem: Problem) -> dict[str, Any]:
    """One row: the least period, what is proven of it, processor time, and the memory of the process so far."""
    began = time.process_time()
    found = best_chain(problem)
    row: dict[str, Any] = {"name": name, "seconds": time.process_time() - began, "mb": peak_mb()}
    if isinstance(found, NoChain):
        return {**row, "proven": found.proven}
    return {**row, "period": found.value.period, "gap": found.gap, "stages": len(found.chain)}


def peak_mb() -> float:
    """The most memory that this program has had. The process's `ru_maxrss` has what its parent had at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def published() -> list[dict[str, Any]]:
    """The instances of tests/data/helix.json."""
    content = json.loads((ROOT / "tests/data/helix.json").read_text())
    rows = []
    for instance in content["instances"]:
        row = solved(instance["name"], published_problem(instance))
        rows.append({**row, "rate": UNIT / row["period"], "expected": instance["one_chain_found_here"]})
    return rows


def large() -> list[dict[str, Any]]:
    """64 devices of 8 kinds and 128 layers, four shapes, two of each."""
    shapes = [(uneven, linked) for uneven in (False, True) for linked in (False, True)]
    return [
        solved(
            f"{'uneven' if uneven else 'equal'} layers, {'slow' if linked else 'free'} links, seed {seed}",
            large_problem(seed, uneven=uneven, linked=linked),
        )
        for uneven, linked in shapes
        for seed in (0, 1)
    ]


def regions() -> list[dict[str, Any]]:
    """One pipeline and two, of two regions with a slow link between them."""
    rows = []
    for devices, layers in ((3, 12), (8, 32), (20, 64)):
        problem = two_regions(devices, layers, 10_000)
        began = time.process_time()
        one, two = best_chain(problem), best_pipelines(problem, 2)
        assert not isinstance(one, NoChain)
        assert isinstance(two, Pipelines)
        gain = two.rate * one.value.period
        seconds = time.process_time() - began
        name = f"{devices} + {devices} devices, {layers} layers"
        rows.append({"name": name, "pipelines": len(two.chains), "gain": gain, "gap": two.gap, "seconds": seconds})
    return rows


def optimality(count: int) -> list[dict[str, Any]]:
    """Random instances against all chains, and against a dynamic programme over subsets."""
    rows = []
    for name, share, devices, layers, reference in (
        ("up to 5 devices, 8 layers: every chain", 0.9, 5, 8, every_chain),
        ("up to 7 devices, 12 layers: subsets", 0.1, 7, 12, subsets),
    ):
        rng, equal, feasible, took = random.Random(7), 0, 0, 0.0
        total = round(share * count)
        for _ in range(total):
            problem = random_problem(rng, devices, layers)
            while reference is subsets and any(option.width > 1 for option in problem.options):
                problem = random_problem(rng, devices, layers)
            began = time.process_time()
            found = best_chain(problem)
            took += time.process_time() - began
            expected = reference(problem)
            period = None if isinstance(found, NoChain) else found.value.period
            equal += period == expected
            feasible += expected is not None
        rows.append({"name": name, "instances": total, "equal": equal, "feasible": feasible, "seconds": took})
    return rows


def every_chain(problem: Problem) -> int | None:
    """The least period of all chains; None if there is none."""
    best = brute_force(problem)
    return best[0].period if best else None


def subsets(problem: Problem) -> int | None:
    """The least period by a dynamic programme over subsets; None if there is no chain."""
    period = least_period(problem)
    return period if period < NEVER else None


def main() -> None:
    """Run the parts that are named, or all."""
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "published": published,
        "large": large,
        "regions": regions,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} or optimality; all if none")
    parser.add_argument("--instances", type=int, default=5000, help="random instances of optimality")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    parts["optimality"] = lambda: optimality(given.instances)
    results = {name: parts[name]() for name in given.parts or parts}
    if given.json:
        print(json.dumps(results, indent=2))
        return
    for name, rows in results.items():
        print(f"\n{name}\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for row in rows:
            print(f"| {' | '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in row.values())} |")


if __name__ == "__main__":
    main()
