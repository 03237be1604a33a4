# SPDX-License-Identifier: Apache-2.0
"""From what a user wants served to what each pipeline is started from. All is checked here; nothing is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.config.cpu_binding import stage_environments
from zpptool.config.endpoints import StageEndpoints, free_port, open_ports, plan_endpoints, probe_ports, probed_hosts
from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_plan import bytes_on_a_gpu, computes_on_cpu, place_on_gpus
from zpptool.config.gpu_pool import Group
from zpptool.config.local_pipeline import dynamic_partition, split_stages
from zpptool.config.memory_budget import free_memory, kv_share, refuse_too_much, stage_bytes
from zpptool.config.plan import load_plan_file
from zpptool.config.resolve import spec_of_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import address_error, invalid_error, usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.serve.gpus import refuse_full, refuse_unseen

FRONTS_OWN = (
    "--host", "--port", "--uds", "--api-key", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--root-path",
)  # fmt: skip
"""vLLM's words for what the front does here."""
NVIDIAS_DEVICE = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""


@dataclass(frozen=True)
class ServeOptions:
    """What a user asked for; see `zpptool serve --help`."""

    model: Path | None
    pipeline_dir: Path | None
    plan_file: Path | None
    num_stages: int | None
    ranges: tuple[str, ...]
    engine: Engine
    dtype: str
    device: str
    gpu_ids: tuple[Group, ...]
    port: int
    base_port: int | None
    api_port: int | None
    replicas: int
    served_name: str
    engine_args: tuple[str, ...]
    start_timeout_s: float
    step_timeout_s: float
    recovery_deadline_s: float
    beat_timeout_s: float


@dataclass(frozen=True)
class PipelineLaunchPlan:
    """One pipeline, as it is started again and again.

    Attributes:
        specs: every stage; of those addresses that are chosen anew at each start, the ones of the first.
        env: each stage's additions to the environment.
        over_ipc: whether the stages meet in a directory that is made at each start.
        any_port: whether the head's API takes any free port at each start.
    """

    specs: tuple[StageSpec, ...]
    env: tuple[Mapping[str, str], ...]
    over_ipc: bool
    any_port: bool

    def at(self, scratch: Path) -> tuple[StageSpec, ...]:
        """The specs of one start.

        Args:
            scratch: a private directory that lives until the stages have ended.
        """
        links = plan_endpoints(len(self.specs), transport="ipc", ipc_dir=scratch)
        port = free_port() if self.any_port else self.specs[0].api_port
        return tuple(
            msgspec.structs.replace(
                spec,
                bind=link.bind if self.over_ipc else spec.bind,
                connect=link.connect if self.over_ipc else spec.connect,
                local=f"ipc://{scratch / 'head'}",
                api_port=port,
            )
            for spec, link in zip(self.specs, links, strict=True)
        )


def plan_serving(wish: ServeOptions) -> tuple[PipelineLaunchPlan, ...]:
    """Every pipeline that is to be started.

    Raises:
        ZppError: (USAGE), (INVALID), (ADDRESS) or (FAILURE, memory): what was asked for cannot be.
    """
    _refuse_fronts_own(wish.engine_args)
    specs = _plan_specs(wish) if wish.plan_file is not None else _wished_specs(wish)
    placed = place_on_gpus(specs * wish.replicas, wish.gpu_ids)
    stages = placed.specs
    if any(placed.groups):
        if wish.gpu_ids and not placed.named:
            refuse_unseen(placed.groups, placed.found)
        refuse_full(placed.groups, [bytes_on_a_gpu(spec) for spec in stages], placed.found)
    elif computes_on_cpu(wish.device) or (wish.device == "auto" and not NVIDIAS_DEVICE.exists()):
        needed, free = [stage_bytes(spec) for spec in stages], free_memory()
        refuse_too_much(needed, free)
        stages = _with_kv_share(stages, wish.engine_args, needed, free)
    env = stage_environments([spec.tensor_parallel_size for spec in stages], placed.env)
    own = [slice(number * len(specs), (number + 1) * len(specs)) for number in range(wish.replicas)]
    orders = tuple(_replica(stages[part], number, wish, env[part]) for number, part in enumerate(own))
    for order in orders:
        _refuse_taken_ports(order, wish.port)
    return orders


def _wished_specs(wish: ServeOptions) -> tuple[StageSpec, ...]:
    if wish.pipeline_dir is not None:
        directories, manifests = split_stages(wish.pipeline_dir)
        partition = manifests[0].ranges
        if wish.num_stages not in (None, len(partition)):
            raise invalid_error(f"{wish.pipeline_dir} holds {len(partition)} stages, not {wish.num_stages}")
    else:
        assert wish.model is not None
        partition = dynamic_partition(wish.model, wish.num_stages, wish.ranges)
        directories = [wish.model] * len(partition)
    return tuple(
        StageSpec(
            engine=wish.engine,
            model=str(directory),
            partition=tuple((own.start, own.end) for own in partition),
            stage=stage,
            bind="",
            connect="",
            dtype=wish.dtype,
            device=wish.device,
            api_port=wish.api_port or free_port(),
            engine_args=wish.engine_args,
            start_timeout_s=wish.start_timeout_s,
            step_timeout_s=wish.step_timeout_s,
            recovery_deadline_s=wish.recovery_deadline_s,
            beat_timeout_s=wish.beat_timeout_s,
            served_name=wish.served_name,
        )
        for stage, directory in enumerate(directories)
    )


def _plan_specs(wish: ServeOptions) -> tuple[StageSpec, ...]:
    assert wish.plan_file is not None
    plan = load_plan_file(wish.plan_file)
    places = [place.endpoints for place in plan.stages]
    elsewhere = [place.host for place in places if place.host not in probed_hosts(places)]
    if elsewhere:
        raise usage_error(
            f"{wish.plan_file} puts stages on {', '.join(dict.fromkeys(elsewhere))}, which is not this machine",
            "Start each stage on its own host (zpptool run-stage --plan), and here: zpptool serve --upstream"
            f" http://{places[0].host}:{plan.api_port}",
        )
    return tuple(
        msgspec.structs.replace(
            spec_of_plan(plan, stage, wish.model or wish.pipeline_dir),
            device=wish.device,
            start_timeout_s=wish.start_timeout_s,
            step_timeout_s=wish.step_timeout_s,
            recovery_deadline_s=wish.recovery_deadline_s,
            beat_timeout_s=wish.beat_timeout_s,
            served_name=wish.served_name,
        )
        for stage in range(len(plan.stages))
    )


def _replica(
    specs: tuple[StageSpec, ...], number: int, wish: ServeOptions, env: Sequence[Mapping[str, str]]
) -> PipelineLaunchPlan:
    """The pipeline of that number: the first has the ports that were asked for, each other one those behind."""
    if wish.plan_file is not None:
        if number:
            raise usage_error("a plan has the addresses of one pipeline", "Leave out --replicas, or --plan.")
        return PipelineLaunchPlan(specs, tuple(env), over_ipc=False, any_port=False)
    api_port = wish.api_port + number if wish.api_port is not None else specs[0].api_port
    moved = tuple(msgspec.structs.replace(spec, api_port=api_port) for spec in specs)
    if wish.base_port is not None:
        links = plan_endpoints(len(specs), wish.base_port + number * (len(specs) + 1))
        moved = tuple(
            msgspec.structs.replace(spec, bind=link.bind, connect=link.connect)
            for spec, link in zip(moved, links, strict=True)
        )
    return PipelineLaunchPlan(moved, tuple(env), over_ipc=wish.base_port is None, any_port=wish.api_port is None)


def _refuse_taken_ports(order: PipelineLaunchPlan, front_port: int) -> None:
    api_port = order.specs[0].api_port
    links = () if order.over_ipc else order.specs
    own = {str(api_port) if not order.any_port else "", *(spec.bind.rpartition(":")[2] for spec in links)}
    if str(front_port) in own:
        raise address_error(
            f"the front's port {front_port} is also one of the pipeline's", "Choose another --port, or other ports."
        )
    places = [StageEndpoints(spec.stage, DEFAULT_HOST, spec.bind, spec.connect) for spec in links]
    places = places or [StageEndpoints(0, DEFAULT_HOST, "", "")]
    if links:
        open_ports(places, api_port)
    faults = probe_ports(places, None if order.any_port else api_port)
    if faults:
        raise address_error("; ".join(fault.message for fault in faults), "Give other ports, or none.")


def _refuse_fronts_own(engine_args: Sequence[str]) -> None:
    for word in engine_args:
        if word.split("=")[0].replace("_", "-") in FRONTS_OWN:
            raise usage_error(
                f"{word} is for the front: clients never speak to the engine's own server",
                "Give it to zpptool serve, before --; see zpptool serve --help.",
            )


def _with_kv_share(
    specs: tuple[StageSpec, ...], given: Sequence[str], needed: Sequence[int], free: int
) -> tuple[StageSpec, ...]:
    """Stages of vLLM that share a CPU share its memory too, unless the user has said how."""
    names = {word.split("=")[0].replace("_", "-") for word in given}
    if specs[0].engine is not Engine.VLLM or names & {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}:
        return specs
    words = ("--kv-cache-memory-bytes", str(kv_share(needed, free)))
    return tuple(msgspec.structs.replace(spec, engine_args=(*spec.engine_args, *words)) for spec in specs)
