# SPDX-License-Identifier: Apache-2.0
"""`/pipeline/status`: everything behind the front as one object, for the page, `zpptool status` and scripts.

A pipeline that was started here is known by its supervisor; of one behind an address, the front there tells, if there
is one. Keys are only ever added.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from zpptool.console import SCHEMA_VERSION
from zpptool.pipeline.lifecycle import Phase
from zpptool.pipeline.process import HEAD_NAME
from zpptool.pipeline.supervisor import PipelineView, ProcessView
from zpptool.serve.balance import Upstream
from zpptool.serve.metrics import FrontMetrics
from zpptool.serve.pool import Pool


def whole_status(
    pool: Pool, metrics: FrontMetrics, described: Sequence[Mapping[str, Any]], tokens_per_s: Mapping[str, float | None]
) -> dict[str, Any]:
    """The object.

    Args:
        pool: the pipelines behind the front.
        metrics: the front's counts.
        described: what each pipeline's source says, in the pool's order.
        tokens_per_s: by pipeline; None where it does not tell.
    """
    replicas, stages = [], []
    for upstream, own in zip(pool.upstreams, described, strict=True):
        replicas.append(_replica(upstream, own, tokens_per_s.get(upstream.name)))
        for stage in own.get("stages", ()):
            requests = stage.get("requests", upstream.in_flight)
            stages.append({**stage, "replica": upstream.name, "requests": requests})
    rates = [rate for rate in tokens_per_s.values() if rate is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "phase": pool.phase,
        "ready": pool.is_ready,
        "model": next((own["model"] for own in described if own.get("model")), None),
        "tokens_per_s": sum(rates) if rates else None,
        "requests": {"in_flight": pool.in_flight - pool.waiting, "waiting": pool.waiting, **metrics.counts},
        "replicas": replicas,
        "stages": stages,
    }


def _replica(upstream: Upstream, own: Mapping[str, Any], tokens_per_s: float | None) -> dict[str, Any]:
    standing = upstream.standing
    return {
        "replica": upstream.name,
        "url": standing.url,
        "phase": standing.phase,
        "ready": standing.ready,
        "epoch": standing.epoch,
        "restarts": own.get("restarts", 0),
        "requests": upstream.in_flight,
        "requests_total": upstream.taken,
        "engine": own.get("engine"),
        "head": own.get("head"),
        "tokens_per_s": tokens_per_s,
        "why": standing.why,
    }


def describe_pipeline(view: PipelineView) -> dict[str, Any]:
    """What is known of a pipeline that was started here."""
    processes = {process.name: process for process in view.processes}
    alive = {name: _memory(process.pid) for name, process in processes.items()}
    stages = []
    for spec in view.specs:
        name = f"stage {spec.stage}"
        memory = alive.get(name)
        stages.append(
            {
                "stage": spec.stage,
                "host": socket.gethostname(),
                "pid": processes[name].pid if memory is not None else None,
                "layers": [spec.layers.start, spec.layers.end],
                "phase": stage_phase(view, processes.get(name), running=memory is not None),
                "epoch": view.state.epoch,
                "memory": memory,
                "rtt_ms": None,
                "link": None,
            }
        )
    head = alive.get(HEAD_NAME)
    first = view.specs[0] if view.specs else None
    return {
        "model": (first.served_name or first.model) if first else None,
        "engine": str(first.engine) if first else None,
        "restarts": view.restarts,
        "head": {"pid": processes[HEAD_NAME].pid, "memory": head} if head is not None else None,
        "stages": stages,
    }


def stage_phase(view: PipelineView, process: ProcessView | None, *, running: bool) -> str:
    """What a stage is doing, in words: as it says while it starts, as its pipeline is afterwards."""
    if process is None or not running:
        return "not running"
    return process.phase if view.state.phase is Phase.STARTING else str(view.state.phase)


def _memory(pid: int) -> int | None:
    """Resident bytes of a process and all it has started; None where it does not run."""
    try:
        root = psutil.Process(pid)
        if root.status() == psutil.STATUS_ZOMBIE:
            return None
        total: int = root.memory_info().rss
        children = root.children(recursive=True)
    except psutil.Error:
        return None
    for child in children:
        try:
            total += child.memory_info().rss
        except psutil.Error:
            continue
    return total
