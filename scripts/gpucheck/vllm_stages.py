# SPDX-License-Identifier: Apache-2.0
"""vLLM in two stages that share one card: parity, a stage that is killed, and speed beside vLLM itself.

Each stage gets 0.4 of the card's memory. Parity is checked one sequence a step: eager in the model's own dtype, so that
every bit has to be equal; with graphs in float32, because a compiler that fuses across the end of a stage rounds
elsewhere. Recovery is checked in float32: in bf16 the last bit of a recomputed sequence may differ, and so may its
tokens.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from gpucheck.check import Bench, Failed, Refused
from gpucheck.command import ZPPTOOL, Command, test_pipeline
from gpucheck.embedded import parity_of
from gpucheck.streams import complete_many, tokens_per_second

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
NAME = "checked"
ENGINE_ARGUMENTS = (
    "--gpu-memory-utilization", "0.4", "--kv-cache-memory-bytes", str(1 << 29), "--max-model-len", "1024",
)  # fmt: skip
USAGE = 2
KILL_AFTER_S = 0.5

Run = Callable[[Bench], dict[str, Any]]


def engine_arguments(*, eager: bool) -> tuple[str, ...]:
    """What follows `--`, on both sides of a comparison."""
    return (*ENGINE_ARGUMENTS, *(("--enforce-eager",) if eager else ()))


def runner_environment(runner: str) -> dict[str, str]:
    """The environment that selects vLLM's model runner, `v1` or `v2`."""
    return {RUNNER: "1" if runner == "v2" else "0"}


def _on_one_card(bench: Bench) -> tuple[str, ...]:
    """Options with which both stages share the first card."""
    device = bench.machine.device
    return ("--device", device, *(("--gpu-ids", "0,0") if device == "cuda" else ()))


def refuse_if_refused(runner: str, code: int | None, text: str) -> None:
    """Raise `Refused` where this build of zpptool does not support a runner, with its own words."""
    if code == USAGE and RUNNER in text:
        line = next(line for line in text.splitlines() if RUNNER in line)
        raise Refused(f"this build refuses the {runner.upper()} runner: {line.strip()}")


def parity(runner: str, *, eager: bool) -> Run:
    """Two stages against the unsplit engine."""

    def check(bench: Bench) -> dict[str, Any]:
        words = (
            bench.model, "--engine", "vllm", "--num-stages", 2, *_on_one_card(bench), "--max-new-tokens", 24,
            "--dtype", "auto" if eager else "float32", "--", *engine_arguments(eager=eager),
        )  # fmt: skip
        code, report = test_pipeline(words, bench.directory, runner_environment(runner), bench.limit_s)
        if isinstance(report, str):
            refuse_if_refused(runner, code, report)
        return parity_of(code, report)

    return check


def recovery(runner: str, *, eager: bool) -> Run:
    """The speed of two stages, then a stage that is killed under load: every answer has to be the undisturbed one."""

    def check(bench: Bench) -> dict[str, Any]:
        end = time.monotonic() + bench.limit_s
        words = (
            *ZPPTOOL, "serve", bench.model, "--engine", "vllm", "--num-stages", 2, *_on_one_card(bench), "--port", 0,
            "--dtype", "float32", "--served-model-name", NAME, "--",
            *engine_arguments(eager=eager),
        )  # fmt: skip
        pipeline = Command(words, bench.directory / "serve.log", runner_environment(runner))
        try:
            try:
                pipeline.find(r"(ready after)", end - time.monotonic())
            except Failed:
                refuse_if_refused(runner, pipeline.process.poll(), pipeline.text())
                raise
            url = pipeline.find(r"the front listens at (\S+);", 5)
            speed = tokens_per_second(url, NAME, end - time.monotonic())
            return {**speed, **_killed(pipeline, url, end)}
        finally:
            pipeline.close()

    return check


def _killed(pipeline: Command, url: str, end: float) -> dict[str, Any]:
    """Kill the last stage while it computes, and compare the answers."""
    quiet = complete_many(url, NAME, end - time.monotonic())
    killed_at = 0.0

    def kill() -> None:
        nonlocal killed_at
        time.sleep(KILL_AFTER_S)
        pipeline.worker(1).kill()
        killed_at = time.monotonic()

    disturbed = complete_many(url, NAME, end - time.monotonic(), kill)
    recovered_s = round(time.monotonic() - killed_at, 1)
    different = sum(one != other for one, other in zip(quiet, disturbed, strict=True))
    if different:
        raise Failed(f"{different} of {len(quiet)} answers differ after a stage was killed")
    return {"killed_to_all_answered_s": recovered_s}


def speed_of_vllm(pipeline_parallel_size: int) -> Run:
    """vLLM's own server in the same dtype: unsplit on one card, or its own pipeline over so many."""

    def check(bench: Bench) -> dict[str, Any]:
        end = time.monotonic() + bench.limit_s
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = (
            sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", bench.model, "--host", "127.0.0.1",
            "--port", port, "--dtype", "float32", "--served-model-name", NAME, "--pipeline-parallel-size",
            pipeline_parallel_size, *engine_arguments(eager=False),
        )  # fmt: skip
        server = Command(words, bench.directory / "vllm.log", {})
        try:
            url = f"http://127.0.0.1:{port}"
            server.await_http(f"{url}/health", end - time.monotonic())
            return tokens_per_second(url, NAME, end - time.monotonic())
        finally:
            server.close()

    return check
