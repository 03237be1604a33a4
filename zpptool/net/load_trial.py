# SPDX-License-Identifier: Apache-2.0
"""Measure a running pipeline under load: requests at once, and what each waits for. Results have the keys of vLLM's
`bench serve`, so both can be compared and plotted by the same scripts."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zpptool.errors import ZppError
from zpptool.net.answer_stream import AnswerClient

LEAST_ID, MOST_ID = 10, 250
"""Token ids of random prompts: in the vocabulary of every model, and beyond its first ids, which are special."""
PERCENTILES = (50, 99)


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        model: its name.
        num_prompts: how many requests.
        input_len: tokens of each prompt.
        output_len: tokens of each answer.
        concurrency: the most requests at a time.
        seed: of the random prompts.
    """

    model: str
    num_prompts: int
    input_len: int
    output_len: int
    concurrency: int
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """One answer: when each of its pieces came, in seconds after the request; `fault` where it failed."""

    arrivals: tuple[float, ...]
    fault: str = ""


def run_load(client: AnswerClient, load: Load, progress: Callable[[int], None] = lambda _done: None) -> dict[str, Any]:
    """Ask a pipeline, and return the result.

    Args:
        client: of the pipeline.
        load: what to ask.
        progress: called with the number of answers so far.

    Raises:
        ZppError: the first request's error, if no request was answered.
    """
    rng = random.Random(load.seed)
    prompts = [[rng.randint(LEAST_ID, MOST_ID) for _ in range(load.input_len)] for _ in range(load.num_prompts)]
    began = time.monotonic()
    timings: list[Timing] = []
    with ThreadPoolExecutor(load.concurrency) as pool:
        for timing in pool.map(lambda prompt: _ask(client, load, prompt), prompts):
            timings.append(timing)
            progress(len(timings))
    if all(timing.fault for timing in timings):
        raise ZppError(f"no request was answered: {timings[0].fault}")
    return result_of(timings, load, time.monotonic() - began)


def _ask(client: AnswerClient, load: Load, prompt: list[int]) -> Timing:
    body = {"model": load.model, "prompt": prompt, "max_tokens": load.output_len, "ignore_eos": True, "temperature": 0}
    arrivals: list[float] = []
    began = time.monotonic()
    try:
        for _piece in client.stream("/v1/completions", body):
            arrivals.append(time.monotonic() - began)
    except ZppError as fault:
        return Timing(tuple(arrivals), fault.message)
    return Timing(tuple(arrivals), "" if arrivals else "the answer was empty")


def result_of(timings: Sequence[Timing], load: Load, duration_s: float) -> dict[str, Any]:
    """Return the figures of a trial; times of tokens are in milliseconds.

    Args:
        timings: of all requests.
        load: what was asked.
        duration_s: of the trial.
    """
    good = [timing.arrivals for timing in timings if not timing.fault]
    tokens = len(good) * load.output_len
    first = [arrivals[0] for arrivals in good]
    between = [(arrivals[-1] - arrivals[0]) / max(load.output_len - 1, 1) for arrivals in good]
    gaps = [later - earlier for arrivals in good for earlier, later in pairwise(arrivals)]
    whole = [arrivals[-1] for arrivals in good]
    return {
        "model_id": load.model,
        "num_prompts": load.num_prompts,
        "max_concurrency": load.concurrency,
        "completed": len(good),
        "failed": len(timings) - len(good),
        "duration": duration_s,
        "total_input_tokens": len(good) * load.input_len,
        "total_output_tokens": tokens,
        "request_throughput": len(good) / duration_s,
        "output_throughput": tokens / duration_s,
        "total_token_throughput": (tokens + len(good) * load.input_len) / duration_s,
        **_distribution("ttft", first),
        **_distribution("tpot", between),
        **_distribution("itl", gaps),
        **_distribution("e2el", whole),
    }


def _distribution(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median and percentiles of times, in milliseconds, under vLLM's names."""
    if not seconds:
        return {}
    ordered = sorted(1000 * each for each in seconds)
    found = {f"mean_{name}_ms": statistics.fmean(ordered), f"median_{name}_ms": statistics.median(ordered)}
    for percent in PERCENTILES:
        place = min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))
        found[f"p{percent}_{name}_ms"] = ordered[place]
    return found
