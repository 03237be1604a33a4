# SPDX-License-Identifier: Apache-2.0
"""One stage as a container: its name, its port, the stage it receives from, its command and its resources.

Every stage has its own network name. It binds the port of the plan on all addresses of its network namespace, and
connects to the name of the preceding stage. There is exactly one container per stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from zpptool.config.plan import PlannedStage
from zpptool.config.plan_gpus import gpus_on_host
from zpptool.deploy.deployment import Deployment, Device
from zpptool.errors import invalid_error
from zpptool.sources.volume import volume_directory

MODELS = "/models"
"""Mount point of the volume that holds the stage directory."""
SOURCE = "/source"
"""Mount point of the checkpoint, if it is not on the Hub."""
START_S = 1800
"""Start timeout in seconds: it covers the slowest stage's fetching, loading, and the roll call, but not the stage's own
fetching."""
PRE_STOP_S = 5
"""Seconds between the end of a pod and its SIGTERM, for load balancers to notice that it takes no more requests."""
DRAIN_S = 30
"""Seconds that answers in progress have to end after SIGTERM."""
LATER_DRAIN_S = DRAIN_S + PRE_STOP_S + 10
"""Seconds that a later stage computes after SIGTERM, unless the ring stops: stage 0 may get its SIGTERM later, and
stops the ring after its own time."""
END_S = 15
"""Seconds that the processes of a stage may take to end after that."""
GIB = 1 << 30
PROCESS_BYTES = 4 * GIB
"""Host memory of torch, the engine and its buffers, without weights; 2 to 3 GiB were measured with vLLM 0.32 on CPU."""
HEAD_BYTES = 3 * GIB
"""Host memory of the head's API server and engine core, which run beside stage 0."""
CPU_CACHE_BYTES = 4 * GIB
"""Host memory of vLLM's KV cache on CPU (VLLM_CPU_KVCACHE_SPACE); on a GPU the cache is in GPU memory."""


@dataclass(frozen=True)
class StageUnit:
    """One stage to run.

    Attributes:
        place: the stage in the plan.
        name: network name of the stage.
        port: port of its link, to which the next stage connects.
        api_port: port of the OpenAI API for stage 0; None for other stages.
        receiver: number of the stage that connects to it.
        run: the command that runs the stage (`zpptool run-stage ...`).
        fetch: the command that writes its directory (`zpptool fetch ...`), or finds it there.
        gpus: the numbers of its GPUs on a machine that has all stages, one for each rank; empty on a CPU.
        memory_bytes: host memory.
        cpus: its processors; 0 for the default of the target.
        disk_bytes: size of its volume.
    """

    place: PlannedStage
    name: str
    port: int
    api_port: int | None
    receiver: int
    run: tuple[str, ...]
    fetch: tuple[str, ...]
    gpus: tuple[int, ...]
    memory_bytes: int
    cpus: int
    disk_bytes: int

    @property
    def stage(self) -> int:
        """Number of the stage."""
        return self.place.stage


def stage_units(deployment: Deployment, source: str) -> tuple[StageUnit, ...]:
    """Return the units of all stages of a deployment, in order.

    Args:
        deployment: the deployment.
        source: what `zpptool fetch` reads: a model on the Hub, or a directory inside the container.

    Raises:
        ZppError: (INVALID) a link of the plan does not use tcp; containers share no socket files.
    """
    gpus = gpus_on_host(deployment.plan.stages, str(deployment.device))
    return tuple(_unit(deployment, place, source, gpus[place.stage]) for place in deployment.plan.stages)


def link_environment(deployment: Deployment, keys: str) -> dict[str, str]:
    """Return the environment variables for a stage's link keys, for containers and systemd units.

    Args:
        deployment: the deployment.
        keys: path of the stage's key file.
    """
    return {"ZPP_INSECURE": "1"} if deployment.insecure else {"ZPP_KEYS": keys}


def shutdown_timeout_s(stage: int) -> int:
    """Return the `--shutdown-timeout` of a stage, in seconds."""
    return LATER_DRAIN_S if stage else DRAIN_S


def stop_limit_s(stage: int) -> int:
    """Return how long a stage may take to stop before it may be killed, in seconds."""
    return PRE_STOP_S + shutdown_timeout_s(stage) + END_S


def key_file(stage: int) -> str:
    """Return the name of a stage's key file, as `zpptool keys generate` writes it."""
    return f"stage_{stage}.keys"


def _unit(deployment: Deployment, place: PlannedStage, source: str, gpus: tuple[int, ...]) -> StageUnit:
    plan, last = deployment.plan, len(deployment.plan.stages) - 1
    before = plan.stages[place.stage - 1]
    port, port_before = _port(place), _port(before)
    first = place.stage == 0
    api = ("--host", "0.0.0.0", "--port", str(plan.api_port)) if first else ()
    previous = f"{stage_name(deployment.name, before.stage)}:{port_before}"
    home = stage_home(deployment, place.stage, MODELS)
    return StageUnit(
        place=place,
        name=stage_name(deployment.name, place.stage),
        port=port,
        api_port=plan.api_port if first else None,
        receiver=0 if place.stage == last else place.stage + 1,
        run=(
            "zpptool", "run-stage", f"{home}/stage_{place.stage}", "--engine", str(plan.engine),
            "--device", str(deployment.device_of(place)), *_ranks(place), "--dtype", plan.dtype,
            "--start-timeout", str(START_S), "--shutdown-timeout", str(shutdown_timeout_s(place.stage)),
            "--bind-host", "0.0.0.0", "--local-bind-port", str(port),
            "--prev-stage-addr" if first else "--prev-stage-service-addr", previous, *api,
            *(("--", *plan.engine_args) if plan.engine_args else ()),
        ),
        fetch=("zpptool", *fetch_words(deployment, place.stage, source, MODELS)),
        gpus=gpus,
        memory_bytes=_memory(deployment, place),
        cpus=place.runs_on.cpus,
        disk_bytes=_whole_gib(place.weight_bytes + place.weight_bytes // 5 + GIB),
    )  # fmt: skip


def stage_home(deployment: Deployment, stage: int, volume: str) -> str:
    """Return the directory in a volume that holds the directory of a stage.

    Its name is a digest of the source, the model and all layer ranges: after a change of one of them the stage is
    written beside the old one, and never found in its place.
    """
    plan = deployment.plan
    return f"{volume}/{volume_directory(deployment.source, plan.model_digest, plan.partition, stage)}"


def fetch_words(deployment: Deployment, stage: int, source: str, volume: str) -> tuple[str, ...]:
    """Return the `zpptool fetch` command that puts a stage into a volume of its own, without the program's name.

    A stage that is whole in the volume is kept, and the source is not asked, so a stage starts while that is down.

    Args:
        deployment: the deployment.
        stage: number of the stage.
        source: what the command reads there.
        volume: the volume's path there.
    """
    plan = deployment.plan
    return (
        "fetch", source, "--ranges", *(other.layers for other in plan.stages), "--stage", str(stage),
        "--model-digest", plan.model_digest, "--replace", "--output-dir", stage_home(deployment, stage, volume),
    )  # fmt: skip


def stage_name(name: str, stage: int) -> str:
    """Return the network name of a stage."""
    return f"{name}-stage-{stage}"


def _port(place: PlannedStage) -> int:
    port = urlsplit(place.bind).port
    if port is None:
        raise invalid_error(
            f"stage {place.stage} binds {place.bind}, but containers are linked over tcp",
            "Make a plan with tcp addresses.",
        )
    return port


def _memory(deployment: Deployment, place: PlannedStage) -> int:
    """Return the host memory of a stage in bytes.

    The plan's own takes precedence over this estimate. It includes the weights: on a CPU they stay in it, for a GPU
    they pass through the page cache. Every tensor-parallel rank is a process.
    """
    if place.runs_on.memory_gib:
        return place.runs_on.memory_gib * GIB
    cache = CPU_CACHE_BYTES if deployment.device_of(place) is Device.CPU else 0
    head = HEAD_BYTES if place.stage == 0 else 0
    return _whole_gib(place.weight_bytes + place.tensor_parallel_size * (PROCESS_BYTES + cache) + head)


def _ranks(place: PlannedStage) -> tuple[str, ...]:
    size = place.tensor_parallel_size
    return ("--tensor-parallel-size", str(size)) if size > 1 else ()


def _whole_gib(count: int) -> int:
    return -(-count // GIB) * GIB
