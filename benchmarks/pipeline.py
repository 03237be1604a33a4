# SPDX-License-Identifier: Apache-2.0
"""Speed of a pipeline: ours, vLLM's own (`--pipeline-parallel-size N`, mp, gloo) and the unsplit engine.

    python benchmarks/pipeline.py [--model DIR] [--stages 2 3 4] [--requests 1 4 16 64] [--rounds 5] [--compiled]
    python benchmarks/pipeline.py --tiny        # a model of 4 tiny layers: only overhead counts

All sides are alive at once, idle ones use no processor (that is checked), and they take turns in another order each
round. Shown are medians over the rounds, and the median of the rounds' ratios to vLLM's own pipeline.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from load import Taken, ask
from servers import ENGINE, Side, start_native, start_ours, start_unsplit
from tiny import make_tiny_model

from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.partition import even_partition

ROOT = Path(__file__).resolve().parents[1]
QUIET_S = 1.5
"""vLLM's workers spin for a second after the last message: no side's turn begins before that is over."""
IDLE_LIMIT = 0.10
STOCK_SCHEDULER = ("--scheduler-cls", "vllm.v1.core.sched.scheduler.Scheduler")


def main() -> None:
    """Start all sides, let them take turns, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    options.add_argument("--tiny", action="store_true", help="a model of 4 tiny layers instead")
    options.add_argument("--stages", type=int, nargs="+", default=[2, 3, 4])
    options.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16, 64])
    options.add_argument("--prompt-tokens", type=int, default=32)
    options.add_argument("--tokens", type=int, default=48, help="of each answer")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--compiled", action="store_true", help="compile the model (minutes more at the start)")
    options.add_argument(
        "--only",
        nargs="+",
        default=["unsplit", "native", "ours"],
        help="which sides; stock: ours, with vLLM's scheduler",
    )
    options.add_argument("--engine-arg", action="append", default=[], help="one more word for all sides' engine")
    options.add_argument("--trace", help="write a timeline of our side to this file")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = make_tiny_model(Path(scratch) / "tiny") if given.tiny else given.model
        engine = (*ENGINE, *([] if given.compiled else ["--enforce-eager"]), *given.engine_arg)
        for number, stages in enumerate(given.stages):
            with_unsplit = "unsplit" in given.only and number == 0
            compare(model, stages, engine, given, with_unsplit=with_unsplit)


def compare(
    model: Path, stages: int, engine: tuple[str, ...], given: argparse.Namespace, *, with_unsplit: bool
) -> None:
    """Start the sides of one number of stages, measure, print, end them."""
    ranges = even_partition(count_layers(model), stages)
    starts = {
        "unsplit": lambda: start_unsplit(model, engine),
        "native": lambda: start_native(model, ranges, engine),
        "ours": lambda: start_ours(model, ranges, engine, ("--trace", given.trace) if given.trace else ()),
        "stock": lambda: start_ours(model, ranges, (*engine, *STOCK_SCHEDULER), name="stock"),
    }
    sides: list[Side] = []
    try:
        for name, start in starts.items():
            if name in given.only and (name != "unsplit" or with_unsplit):
                began = time.monotonic()
                sides.append(start())
                sides[-1].wait_until_ready()
                print(f"{sides[-1].name}: ready after {time.monotonic() - began:.0f} s", flush=True)
        for side in sides:
            ask(side.url, max(given.requests), given.prompt_tokens, 8, seed=999)
        check_idle(sides)
        for requests in given.requests:
            show(requests, given, *measured(sides, requests, given))
    finally:
        for side in sides:
            side.stop()


def check_idle(sides: list[Side]) -> None:
    """Say how much processor each side uses while nobody asks it anything."""
    time.sleep(QUIET_S)
    before = [side.processor_s() for side in sides]
    time.sleep(3)
    for side, then in zip(sides, before, strict=True):
        share = (side.processor_s() - then) / 3
        print(f"{side.name}: {share:.1%} of a core while idle{'  TOO MUCH' if share > IDLE_LIMIT else ''}", flush=True)


def measured(sides: list[Side], requests: int, given: argparse.Namespace) -> tuple[dict[str, list[Taken]], list[float]]:
    """What each side took in each round, and the machine's load at each round."""
    taken: dict[str, list[Taken]] = {side.name: [] for side in sides}
    loads = []
    for number in range(given.rounds):
        for side in random.sample(sides, len(sides)):
            time.sleep(QUIET_S)
            before = side.processor_s()
            took = ask(side.url, requests, given.prompt_tokens, given.tokens, seed=number)
            took.processor_ms = (side.processor_s() - before) * 1000 / (requests * given.tokens)
            taken[side.name].append(took)
        loads.append(os.getloadavg()[0])
    return taken, loads


def show(requests: int, given: argparse.Namespace, taken: dict[str, list[Taken]], loads: list[float]) -> None:
    """One line a side."""
    each = f"{given.prompt_tokens} + {given.tokens} tokens"
    print(f"\n{requests} requests of {each}, {given.rounds} rounds, load {statistics.median(loads):.1f}")
    print(f"{'':>10} {'tokens/s':>9} {'steps/s':>8} {'gap ms':>7} {'p99':>7} {'first ms':>8} {'cpu ms/token':>12}")
    native = next((name for name in taken if name.startswith("native")), None)
    for name, rounds in taken.items():
        cells = [
            f"{middle(rounds, 'tokens_per_s'):>9.1f}", f"{middle(rounds, 'steps_per_s'):>8.1f}",
            f"{middle(rounds, 'gap_s') * 1e3:>7.1f}", f"{middle(rounds, 'slow_gap_s') * 1e3:>7.1f}",
            f"{middle(rounds, 'first_s') * 1e3:>8.0f}", f"{middle(rounds, 'processor_ms'):>12.2f}",
        ]  # fmt: skip
        if native is not None:
            tokens, steps = (ratio(rounds, taken[native], what) for what in ("tokens_per_s", "steps_per_s"))
            cells.append(f" {tokens:.2f} x native's tokens/s, {steps:.2f} x its steps/s")
        print(f"{name:>10} " + " ".join(cells), flush=True)


def middle(rounds: list[Taken], what: str) -> float:
    """The median over the rounds."""
    return statistics.median(getattr(one, what) for one in rounds)


def ratio(rounds: list[Taken], other: list[Taken], what: str) -> float:
    """The median of the rounds' ratios: what slows a whole round slows both."""
    pairs = zip(rounds, other, strict=True)
    return statistics.median(getattr(one, what) / max(getattr(two, what), 1e-9) for one, two in pairs)


if __name__ == "__main__":
    main()
