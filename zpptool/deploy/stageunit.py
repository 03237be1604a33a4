# SPDX-License-Identifier: Apache-2.0
"""One stage as a container sees it: its name, its port, who it hears from, what it runs and what it needs.

Every stage has a network name of its own, so each binds the port that its plan says on all addresses of its own network
namespace, and connects to the name of the stage before it. There is one of each stage, never two.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from zpptool.config.plan import PlannedStage
from zpptool.deploy.deployment import Deployment, Device
from zpptool.errors import invalid_error

MODELS = "/models"
"""Where a stage's own directory is written, on a volume of its own."""
SOURCE = "/source"
"""Where the checkpoint is mounted, if it is not on the Hub."""
START_S = 1800
"""How long a start may take, its own fetching apart: the slowest stage's fetching, loading, and the roll call."""
GIB = 1 << 30
PROCESS_BYTES = 4 * GIB
"""The host memory of torch, the engine and its buffers, without weights; vLLM 0.32 on CPU was seen at 2 to 3 GiB."""
HEAD_BYTES = 3 * GIB
"""The head's API server and engine core, beside stage 0."""
CPU_CACHE_BYTES = 4 * GIB
"""The KV cache of vLLM on CPU (VLLM_CPU_KVCACHE_SPACE); on a GPU it lies there."""


@dataclass(frozen=True)
class StageUnit:
    """One stage to run.

    Attributes:
        place: the stage in the plan.
        name: its own network name.
        port: the port it sends from.
        api_port: stage 0 only: the OpenAI API; None elsewhere.
        receiver: the number of the stage that connects to it.
        run: the words of `zpptool run-stage` and all that follows.
        fetch: the words of `zpptool split` that write its directory.
        memory_bytes: host memory.
        disk_bytes: of its volume.
    """

    place: PlannedStage
    name: str
    port: int
    api_port: int | None
    receiver: int
    run: tuple[str, ...]
    fetch: tuple[str, ...]
    memory_bytes: int
    disk_bytes: int

    @property
    def stage(self) -> int:
        return self.place.stage


def stage_units(wish: Deployment, source: str) -> tuple[StageUnit, ...]:
    """Every stage of a deployment, in order.

    Args:
        wish: the deployment.
        source: what `zpptool split` reads: a model on the Hub, or a directory inside the container.

    Raises:
        ZppError: (INVALID) a link of the plan is not tcp, and containers share no socket files.
    """
    return tuple(_unit(wish, place, source) for place in wish.plan.stages)


def link_environment(wish: Deployment, keys: str) -> dict[str, str]:
    """How a stage is told about keys: the one place that says so, for containers and units alike."""
    return {"ZPP_INSECURE": "1"} if wish.insecure else {"ZPP_KEYS": keys}


def key_file(stage: int) -> str:
    """The name of a stage's key file, as `zpptool keys generate` writes it."""
    return f"stage_{stage}.keys"


def _unit(wish: Deployment, place: PlannedStage, source: str) -> StageUnit:
    plan, last = wish.plan, len(wish.plan.stages) - 1
    before = plan.stages[place.stage - 1]
    port, port_before = _port(place), _port(before)
    first = place.stage == 0
    api = ("--host", "0.0.0.0", "--port", str(plan.api_port)) if first else ()
    previous = f"{stage_name(wish.name, before.stage)}:{port_before}"
    return StageUnit(
        place=place,
        name=stage_name(wish.name, place.stage),
        port=port,
        api_port=plan.api_port if first else None,
        receiver=0 if place.stage == last else place.stage + 1,
        run=(
            "zpptool", "run-stage", f"{MODELS}/stage_{place.stage}", "--engine", str(plan.engine),
            "--device", str(wish.device), "--dtype", plan.dtype, "--start-timeout", str(START_S),
            "--bind-host", "0.0.0.0", "--local-bind-port",
            str(port), "--prev-stage-addr" if first else "--prev-stage-service-addr", previous, *api,
            *(("--", *plan.engine_args) if plan.engine_args else ()),
        ),
        fetch=(
            "zpptool", "split", source, "--ranges", *(own.layers for own in plan.stages),
            "--stage", str(place.stage), "--output-dir", MODELS,
        ),
        memory_bytes=_memory(wish, place),
        disk_bytes=_whole_gib(place.weight_bytes + place.weight_bytes // 5 + GIB),
    )  # fmt: skip


def stage_name(name: str, stage: int) -> str:
    """The network name of a stage."""
    return f"{name}-stage-{stage}"


def _port(place: PlannedStage) -> int:
    port = urlsplit(place.bind).port
    if port is None:
        raise invalid_error(f"stage {place.stage} binds {place.bind}, and containers are linked over tcp")
    return port


def _memory(wish: Deployment, place: PlannedStage) -> int:
    """Weights are in host memory for good on a CPU, and pass through the page cache on their way to a GPU."""
    cache = CPU_CACHE_BYTES if wish.device is Device.CPU else 0
    head = HEAD_BYTES if place.stage == 0 else 0
    return _whole_gib(place.weight_bytes + PROCESS_BYTES + cache + head)


def _whole_gib(count: int) -> int:
    return -(-count // GIB) * GIB
