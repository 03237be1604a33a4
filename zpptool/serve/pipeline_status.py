# SPDX-License-Identifier: Apache-2.0
"""`/pipeline/status`: all pipelines behind the gateway as one object, for the page, `zpptool status` and scripts.

For a pipeline that was started here, the data come from its supervisor and, about its ring, from its head; for one
behind `--upstream` from the front there, if there is one. Keys are only ever added.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from zpptool.checkpoint.chat_template import has_chat_template
from zpptool.config.engine_arguments import has_option
from zpptool.config.stage_spec import StageSpec
from zpptool.console import SCHEMA_VERSION
from zpptool.places import place_name
from zpptool.process.group import HEAD_NAME
from zpptool.process.progress import STARTING
from zpptool.process.progress import WAITING as WAITING_FOR_OTHERS
from zpptool.ring.status import COMPUTING, LOADING, READY, UNHEARD, WAITING, LinkStatus
from zpptool.serve.load_balancing import Upstream
from zpptool.serve.metrics import GatewayMetrics
from zpptool.serve.pool import Pool
from zpptool.supervisor.lifecycle import Phase
from zpptool.supervisor.pipeline_view import PipelineView

LOADED = "loaded"
"""The phase of a stage that can compute, in a pipeline that is not ready yet."""
LINK_FIELDS = (
    "peer", "endpoint", "state", "epoch", "rtt_ms", "queue", "bytes_sent", "bytes_received", "messages_sent",
    "messages_received", "refused", "last_error",
)  # fmt: skip


def whole_status(
    pool: Pool,
    metrics: GatewayMetrics,
    described: Sequence[Mapping[str, Any]],
    tokens_per_s: Mapping[str, float | None],
) -> dict[str, Any]:
    """The whole object.

    Args:
        pool: the pipelines behind the gateway.
        metrics: the gateway's counts.
        described: each pipeline's description, in the pool's order.
        tokens_per_s: by pipeline name; None where it is unknown.
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
        "chat": next((own["chat"] for own in described if own.get("chat") is not None), None),
        "tokens_per_s": sum(rates) if rates else None,
        "requests": {"in_flight": pool.in_flight - pool.waiting, "waiting": pool.waiting, **metrics.counts},
        "replicas": replicas,
        "stages": stages,
    }


def _replica(upstream: Upstream, own: Mapping[str, Any], tokens_per_s: float | None) -> dict[str, Any]:
    state = upstream.state
    return {
        "replica": upstream.name,
        "url": state.url,
        "phase": state.phase,
        "ready": state.ready,
        "epoch": state.generation,
        "generation": state.generation,
        "restarts": own.get("restarts", 0),
        "recoveries": own.get("recoveries", 0),
        "planned": own.get("planned", 0),
        "stall_s": own.get("stall_s", 0.0),
        "recomputed_tokens": own.get("recomputed_tokens", 0),
        "spares": own.get("spares", 0),
        "requests": upstream.in_flight,
        "requests_total": upstream.taken,
        "engine": own.get("engine"),
        "head": own.get("head"),
        "tokens_per_s": tokens_per_s,
        "why": state.why,
    }


def describe_pipeline(view: PipelineView) -> dict[str, Any]:
    """The description of a pipeline that was started here: its processes, its stages and its ring."""
    processes = {process.name: process for process in view.processes}
    ring = view.ring
    statuses = {place_name(place.stage): place for place in (ring.head, *ring.stages)} if ring else {}

    def place(name: str) -> dict[str, Any]:
        process, known = processes.get(name), statuses.get(name)
        memory = _memory(process.pid) if process is not None else None
        running = process is not None and memory is not None
        link = known.link if known is not None and running else None
        return {
            "host": socket.gethostname(),
            "pid": process.pid if process is not None and running else None,
            "memory": memory,
            "steps": known.steps if known is not None and running else None,
            "busy": known.busy if known is not None and running else None,
            "still_s": known.beat_age_s if known is not None and running else None,
            "heard_s": known.heard_age_s if known is not None and running else None,
            "rtt_ms": link.rtt_ms if link is not None else None,
            "link": describe_link(link) if link is not None else None,
        }

    stages = []
    for spec in view.specs:
        own = place(place_name(spec.stage))
        stages.append(
            {
                "stage": spec.stage,
                "layers": [spec.layers.start, spec.layers.end],
                "phase": stage_phase(view, spec.stage, running=own["pid"] is not None),
                "epoch": view.state.generation,
                "generation": view.state.generation,
                **own,
            }
        )
    head = place(HEAD_NAME)
    first = view.specs[0] if view.specs else None
    return {
        "model": (first.served_name or first.model) if first else None,
        "chat": _takes_chats(first) if first else None,
        "engine": str(first.engine) if first else None,
        "restarts": view.restarts,
        "recoveries": ring.recoveries if ring else 0,
        "planned": ring.planned if ring else 0,
        "stall_s": ring.stall_s if ring else 0.0,
        "recomputed_tokens": ring.recomputed_tokens if ring else 0,
        "spares": view.spares,
        "run": ring.run_id if ring else None,
        "head": head if head["pid"] is not None else None,
        "stages": stages,
    }


def _takes_chats(spec: StageSpec) -> bool:
    """Whether the model has a chat template, of its own or among the engine's arguments."""
    return has_chat_template(spec.directory) or has_option(spec.engine_args, "--chat-template")


def describe_link(link: LinkStatus) -> dict[str, Any]:
    """The public fields of a link's status."""
    return {name: getattr(link, name) for name in LINK_FIELDS}


def stage_phase(view: PipelineView, stage: int, *, running: bool = True) -> str:
    """What a stage is doing, for people: the phase that its ring reports, where the pipeline is starting or ready. The
    stage's own process reports it before the ring has a status of the stage, and the percentage while it loads. In any
    other state of the pipeline, that state is the stage's phase too.

    Args:
        view: of the pipeline.
        stage: its index.
        running: whether its process runs, as far as the caller knows.
    """
    process = next((one for one in view.processes if one.name == place_name(stage)), None)
    if process is None and view.state.phase is Phase.STARTING:
        return STARTING
    if process is None or not (running and process.running):
        return "not running"
    if view.state.phase in (Phase.CLEARING, Phase.RESTING) and stage not in view.state.places:
        return WAITING_FOR_OTHERS
    if view.state.phase not in (Phase.STARTING, Phase.READY):
        return str(view.state.phase)
    reported = view.ring.stages[stage].phase if view.ring is not None else UNHEARD
    if reported == LOADING:
        return process.phase if process.phase.startswith(LOADING) else LOADING
    if reported in (UNHEARD, WAITING):
        return process.phase if view.state.phase is Phase.STARTING else READY
    if view.state.phase is Phase.STARTING and reported in (READY, COMPUTING):
        return LOADED
    return reported.replace("-", " ")


def _memory(pid: int) -> int | None:
    """Resident bytes of a process and its descendants; None where it does not run."""
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
