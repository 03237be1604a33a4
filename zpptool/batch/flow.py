# SPDX-License-Identifier: Apache-2.0
"""How many lines are in flight: as many as the engine's KV cache admits, by the engine's own metrics. Pure.

An engine computes what fits its cache and lets the rest wait. A batch that sent everything at once would fill that
queue before every interactive request. So the number is raised while the engine admits all, and lowered when requests
wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FIRST = 16
"""Lines in flight before anything is known about the engine, and where it has no such metrics."""
FULL = 0.9
"""The use of the KV cache above which nothing is added."""
QUEUE_SHARE = 16
"""One in so many of the lines in flight may wait in the engine, so that it never has to wait for the next line."""
_SAMPLE = re.compile(r"^(?P<name>vllm:[a-z_]+)(?:\{[^}]*\})? (?P<value>\S+)", re.MULTILINE)


@dataclass(frozen=True)
class EngineLoad:
    """What an engine reports.

    Attributes:
        kv_usage: the greatest share of a KV cache that is in use, from 0 to 1.
        running: requests that are being computed.
        waiting: requests that wait to be computed.
        preemptions: how often a request was stopped for lack of cache, since the engine was started.
    """

    kv_usage: float
    running: float
    waiting: float
    preemptions: float = 0.0


def load_in(metrics: str) -> EngineLoad | None:
    """The load in an engine's metrics (Prometheus text); None where they do not have it.

    Several engines behind one front count together; of their caches the fullest one counts.
    """
    values: dict[str, list[float]] = {}
    for found in _SAMPLE.finditer(metrics):
        try:
            values.setdefault(found["name"], []).append(float(found["value"]))
        except ValueError:
            continue
    usage = values.get("vllm:kv_cache_usage_perc")
    running, waiting = values.get("vllm:num_requests_running"), values.get("vllm:num_requests_waiting")
    if not usage or running is None or waiting is None:
        return None
    return EngineLoad(max(usage), sum(running), sum(waiting), sum(values.get("vllm:num_preemptions_total", ())))


def next_target(target: int, in_flight: int, load: EngineLoad, limit: int) -> int:
    """How many lines are to be in flight from now on.

    Args:
        target: how many were to be.
        in_flight: how many are.
        load: of the engine.
        limit: the most there may be.
    """
    allowed = max(1, target // QUEUE_SHARE)
    if load.waiting > allowed:
        return max(1, min(target, in_flight) - max(1, round(load.waiting - allowed) // 2))
    if load.kv_usage < FULL and load.waiting == 0 and in_flight >= target:
        return min(limit, target + max(2, target // 2))
    return target
