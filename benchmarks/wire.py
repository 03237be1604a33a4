# SPDX-License-Identifier: Apache-2.0
"""What the wire costs: round trips of two bf16 tensors between two processes, all transports in the same run.

    python benchmarks/wire.py [--seconds 20] [--tokens 1 16 64 2048 8192] [--json FILE] [--only TRANSPORT ...]

The transports (`wirepaths.py`) are measured in turns, in random order, so that a busy machine slows all of them. Shown
are the median round trip in microseconds, below it the ratio to bare ZeroMQ over tcp (up to 64 tokens) or to raw TCP,
and the targets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from servers import free_port
from wirepaths import NAMES, WIDTH, End, open_paths

TOKENS = (1, 16, 64, 2048, 8192)
SMALL = 64
PORTS = 7  # used by `open_paths`
WARM_UP = 4  # round trips of each transport and size, which map memory and cache schemas
TURN = 16  # small round trips in a row


def echo(directory: str, ports: list[int], orders: Connection) -> None:
    """The other process: sends the ordered tensors back by the same transport."""
    torch.set_num_threads(1)
    paths = open_paths(1, directory, ports)
    orders.send("ready")
    while order := orders.recv():
        name, tokens, times = order
        path, tensors = paths[name], _tensors(tokens)
        for _ in range(times):
            path.receive(tokens)
            path.send(tensors)


def measure(paths: dict[str, End], orders: Connection, tokens: int, seconds: float) -> dict[str, list[float]]:
    """Round trips of each transport, in seconds."""
    tensors = _tensors(tokens)
    times: dict[str, list[float]] = {name: [] for name in paths}
    turn = TURN if tokens <= SMALL else 1
    end = time.monotonic() + seconds
    while time.monotonic() < end or min(map(len, times.values())) < 3 * WARM_UP:
        for name in random.sample(list(paths), len(paths)):
            path = paths[name]
            orders.send((name, tokens, turn))
            time.sleep(0.002)  # the other process waits in its receive before the clock starts
            for _ in range(turn):
                start = time.perf_counter()
                path.send(tensors)
                path.receive(tokens)
                times[name].append(time.perf_counter() - start)
    return {name: taken[WARM_UP:] for name, taken in times.items()}


def verdicts(tokens: int, medians: dict[str, float]) -> dict[str, bool]:
    """The targets at this size, and whether they are met."""
    met = {"every ours < gloo": all(medians[name] < medians["gloo"] for name in medians if name.startswith("ours"))}
    if tokens <= SMALL:
        met["ours tcp <= 1.5 x zmq tcp"] = medians["ours tcp"] <= 1.5 * medians["zmq tcp"]
        met["ours ipc <= 1.5 x zmq ipc"] = medians["ours ipc"] <= 1.5 * medians["zmq ipc"]
    else:
        met["ours tcp >= 0.8 of raw tcp"] = medians["raw tcp"] >= 0.8 * medians["ours tcp"]
        met["ours shm <= 0.6 x raw tcp"] = medians["ours shm"] <= 0.6 * medians["raw tcp"]
    return met


@lru_cache(1)
def _tensors(tokens: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(tokens, WIDTH).bfloat16() for name in NAMES}


def main() -> None:
    """Measure and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    options.add_argument("--seconds", type=float, default=20.0, help="for each size")
    options.add_argument("--json", type=Path, help="also write the medians to this file")
    options.add_argument("--only", nargs="+", help="measure these transports, and show no targets")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        base = free_port(PORTS)
        ports = list(range(base, base + PORTS))
        spawn = multiprocessing.get_context("spawn")
        orders, theirs = spawn.Pipe()
        other = spawn.Process(target=echo, args=(directory, ports, theirs), daemon=True)
        other.start()
        paths = open_paths(0, directory, ports)
        orders.recv()
        if given.only:
            paths = {name: paths[name] for name in given.only}
        results, all_met = {}, True
        print(f"{'tokens':>6} " + " ".join(f"{name:>9}" for name in paths) + "   rounds  load")
        for tokens in given.tokens:
            times = measure(paths, orders, tokens, given.seconds)
            medians = {name: statistics.median(taken) * 1e6 for name, taken in times.items()}
            base = medians.get("zmq tcp" if tokens <= SMALL else "raw tcp", next(iter(medians.values())))
            rounds = min(map(len, times.values()))
            print(f"{tokens:>6} " + " ".join(f"{medians[name]:>9.0f}" for name in paths), end="")
            print(f"   {rounds:>6}  {os.getloadavg()[0]:.1f}")
            print(" " * 7 + " ".join(f"{medians[name] / base:>8.2f}x" for name in paths), flush=True)
            met = {} if given.only else verdicts(tokens, medians)
            all_met &= all(met.values())
            print(" " * 7 + ", ".join(f"{target}: {'yes' if yes else 'NO'}" for target, yes in met.items()))
            results[tokens] = medians
        orders.send(None)
        other.join()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    sys.exit(0 if all_met else 1)


if __name__ == "__main__":
    main()
