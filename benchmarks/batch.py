# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of one batch in three ways, in turns: our API, `zpptool run-batch` and `vllm run-batch`.

    python benchmarks/batch.py MODEL --stages 2 --requests 64 --rounds 3

The API and `zpptool run-batch` use one pipeline of ours that runs; the API's client keeps all requests in flight.
`vllm run-batch` starts vLLM's own pipeline each time, so the time of a batch of one line is subtracted from it; each of
its turns costs a start. `--no-vllm` leaves it out. `--invariant` adds a pipeline of ours with one sequence a step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from servers import ENGINE, Side, cores_of_stages, start_ours

from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.partition import even_partition, vllm_layer_partition

EAGER = ("--enforce-eager", "--dtype", "bfloat16")
MODEL_NAME = "batch"


def main() -> None:
    """Run all sides in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="generated for each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--invariant", action="store_true")
    options = parser.parse_args()
    layers = json.loads((options.model / "config.json").read_text())["num_hidden_layers"]
    ranges = even_partition(layers, options.stages)
    engine = [*ENGINE, *EAGER, "--served-model-name", MODEL_NAME]
    sides = [start_ours(options.model, ranges, engine)]
    if options.invariant:
        one = ENGINES[Engine.VLLM].single_sequence_args
        sides.append(start_ours(options.model, ranges, [*engine, *one], name="invariant"))
    took: dict[str, list[float]] = {}
    try:
        for side in sides:
            side.wait_until_ready()
        with tempfile.TemporaryDirectory() as scratch:
            for round_number in range(-1, options.rounds):
                requests = [request(options, round_number, number) for number in range(options.requests)]
                measured = turn(options, Path(scratch), round_number, requests, sides)
                if round_number >= 0:
                    for name, rate in measured.items():
                        took.setdefault(name, []).append(rate)
    finally:
        for side in sides:
            side.stop()
    report(options, took)


def request(options: argparse.Namespace, round_number: int, number: int) -> dict[str, Any]:
    """A request of a round; its prompt was never asked before."""
    prompt = [1000 + (round_number + 2) * 997 % 9000, *range(100 + number, 132 + number)]
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": options.tokens, "ignore_eos": True, "temperature": 0}
    return {"custom_id": f"{round_number} {number}", "method": "POST", "url": "/v1/completions", "body": body}


def turn(
    options: argparse.Namespace, scratch: Path, number: int, requests: list[dict[str, Any]], sides: list[Side]
) -> dict[str, float]:
    """Tokens per second of each side, in an order that changes with the round."""
    tokens = len(requests) * options.tokens
    lines = scratch / f"in{number}.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in requests))
    ways = [
        ("API", lambda: asyncio.run(ask(sides[0].url, requests))),
        ("run-batch", lambda: run_batch(sides[0].url, lines, scratch / f"out{number}.jsonl")),
    ]
    if len(sides) > 1:
        ways.append(("one a step", lambda: run_batch(sides[1].url, lines, scratch / f"one{number}.jsonl")))
    if not options.no_vllm and number >= 0:
        ways.append(("vllm run-batch", lambda: vllm_run_batch(options, lines, scratch)))
    return {name: tokens / way() for name, way in (ways if number % 2 else reversed(ways))}


async def ask(url: str, requests: list[dict[str, Any]]) -> float:
    """Seconds until all requests are answered, all in flight at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        began = time.monotonic()
        answers = await asyncio.gather(*(client.post(each["url"], json=each["body"]) for each in requests))
        took = time.monotonic() - began
    assert all(answer.status_code == httpx.codes.OK for answer in answers), answers
    return took


def run_batch(url: str, lines: Path, output: Path) -> float:
    """Seconds of `zpptool run-batch`, from its first request to its last result on the disk."""
    words = [sys.executable, "-m", "zpptool", "run-batch", "--url", url, "-i", lines, "-o", output, "--json", "--quiet"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def vllm_run_batch(options: argparse.Namespace, lines: Path, scratch: Path) -> float:
    """Seconds of `vllm run-batch` with vLLM's own pipeline, without those of its start."""
    one = scratch / "one.jsonl"
    one.write_text(lines.read_text().splitlines(keepends=True)[0])
    return _vllm_seconds(options, lines, scratch) - _vllm_seconds(options, one, scratch)


def _vllm_seconds(options: argparse.Namespace, lines: Path, scratch: Path) -> float:
    layers = json.loads((options.model / "config.json").read_text())["num_hidden_layers"]
    env = {
        **os.environ,
        "VLLM_PP_LAYER_PARTITION": vllm_layer_partition(even_partition(layers, options.stages)),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(core) for core in cores_of_stages(options.stages)),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", lines, "-o", scratch / "vllm.jsonl"]
    words += ["--model", options.model, "--served-model-name", MODEL_NAME, *ENGINE, *EAGER]
    words += ["--pipeline-parallel-size", options.stages, "--distributed-executor-backend", "mp"]
    began = time.monotonic()
    done = subprocess.run(
        [*map(str, words), "--worker-cls", "eager_worker.EagerWorker"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"vllm run-batch has failed:\n{done.stderr[-3000:]}")
    return time.monotonic() - began


def report(options: argparse.Namespace, took: dict[str, list[float]]) -> None:
    """Print each side's median, and its ratio to the API's."""
    load = os.getloadavg()[0]
    print(f"{options.requests} requests of {options.tokens} tokens, {options.stages} stages, load {load:.1f}")
    api = statistics.median(took["API"])
    for name, rates in took.items():
        rate = statistics.median(rates)
        all_of_them = " ".join(f"{each:.1f}" for each in rates)
        print(f"{name:<16}{rate:8.1f} tokens/s   {rate / api:.3f} x API   ({all_of_them})")


if __name__ == "__main__":
    main()
