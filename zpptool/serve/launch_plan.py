# SPDX-License-Identifier: Apache-2.0
"""Turns the options of `zpptool serve` into one launch plan a pipeline. It checks everything and starts nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.config.cpu_binding import stage_environments
from zpptool.config.endpoints import StageEndpoints, open_ports, plan_endpoints
from zpptool.config.engine_arguments import expanded_arguments, has_option, names_option, refuse_decided
from zpptool.config.engine_flags import check_engine_args
from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_plan import bytes_on_a_gpu, computes_on_cpu, place_on_gpus
from zpptool.config.gpu_pool import Group
from zpptool.config.gpu_sharing import KV_BYTES, UTILIZATION
from zpptool.config.local_pipeline import dynamic_partition, split_stages
from zpptool.config.memory_budget import free_memory, kv_share, refuse_too_much, stage_bytes
from zpptool.config.plan import load_plan_file
from zpptool.config.port_probe import free_port, probe_ports, probed_hosts
from zpptool.config.resolve import spec_of_plan
from zpptool.config.runs_on import AUTO
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import address_error, invalid_error, usage_error
from zpptool.net.addresses import DEFAULT_HOST, url_host
from zpptool.serve.gpus import refuse_full, refuse_unseen
from zpptool.sources.names import served_name

FRONT_OPTIONS = (
    "--host", "--port", "--uds", "--api-key", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--root-path",
)  # fmt: skip
"""Options of vLLM's server for tasks that belong to the front here."""
NVIDIA_DEVICE = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver is loaded."""


@dataclass(frozen=True)
class ServeOptions:
    """The options that determine the pipelines; see `zpptool serve --help`. Names ending in `_s` are in seconds."""

    model: Path | None
    pipeline_dir: Path | None
    plan_file: Path | None
    num_stages: int | None
    ranges: tuple[str, ...]
    engine: Engine
    dtype: str
    gpu_ids: tuple[Group, ...]
    port: int
    base_port: int | None
    api_port: int | None
    replicas: int
    served_name: str
    engine_args: tuple[str, ...]
    runtime: RuntimeOptions
    source: str = ""


@dataclass(frozen=True)
class PipelineLaunchPlan:
    """What one pipeline is started from, each time.

    Attributes:
        specs: every stage's spec. Addresses that are chosen at each start are placeholders here.
        env: each stage's additions to the environment.
        over_ipc: whether the stages' links are unix sockets in a directory that is created for each start.
        any_port: whether the head's API gets a free port at each start.
    """

    specs: tuple[StageSpec, ...]
    env: tuple[Mapping[str, str], ...]
    over_ipc: bool
    any_port: bool

    def at(self, scratch: Path) -> tuple[StageSpec, ...]:
        """The specs of one start.

        Args:
            scratch: a private directory that exists until the stages have ended.
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


def plan_serving(options: ServeOptions) -> tuple[PipelineLaunchPlan, ...]:
    """A launch plan for each pipeline, `options.replicas` of them.

    Raises:
        ZppError: the options cannot be carried out: (USAGE), (INVALID), (ADDRESS), or (FAILURE) for lack of memory.
    """
    specs = _specs_of_plan_file(options) if options.plan_file is not None else _specs_of_model(options)
    engine_args = expanded_arguments(specs[0].engine, specs[0].engine_args)
    refuse_decided(engine_args)
    _refuse_front_options(engine_args)
    if options.plan_file is None:
        check_engine_args(options.engine, engine_args)
    placed = place_on_gpus(specs * options.replicas, options.gpu_ids)
    stages = placed.specs
    if any(placed.groups):
        if options.gpu_ids and not placed.named:
            refuse_unseen(placed.groups, placed.found)
        refuse_full(placed.groups, [bytes_on_a_gpu(spec) for spec in stages], placed.found)
    stages = _within_memory(stages, placed.groups, engine_args)
    env = stage_environments([spec.tensor_parallel_size for spec in stages], placed.env)
    slices = [slice(number * len(specs), (number + 1) * len(specs)) for number in range(options.replicas)]
    plans = tuple(_replica(stages[part], number, options, env[part]) for number, part in enumerate(slices))
    for plan in plans:
        _refuse_taken_ports(plan, options.port)
    return plans


def _specs_of_model(options: ServeOptions) -> tuple[StageSpec, ...]:
    served, source = options.served_name, options.source
    if options.pipeline_dir is not None:
        directories, manifests = split_stages(options.pipeline_dir)
        source = manifests[0].origin
        served = served or served_name(source)
        partition = manifests[0].ranges
        if options.num_stages not in (None, len(partition)):
            raise invalid_error(f"{options.pipeline_dir} holds {len(partition)} stages, not {options.num_stages}")
    else:
        assert options.model is not None
        partition = dynamic_partition(options.model, options.num_stages, options.ranges)
        directories = [options.model] * len(partition)
    return tuple(
        StageSpec(
            engine=options.engine,
            model=str(directory),
            partition=tuple((own.start, own.end) for own in partition),
            stage=stage,
            bind="",
            connect="",
            dtype=options.dtype,
            api_port=options.api_port or free_port(),
            engine_args=options.engine_args,
            runtime=options.runtime,
            served_name=served,
            source=source,
        )
        for stage, directory in enumerate(directories)
    )


def _specs_of_plan_file(options: ServeOptions) -> tuple[StageSpec, ...]:
    assert options.plan_file is not None
    plan = load_plan_file(options.plan_file)
    places = [place.endpoints for place in plan.stages]
    elsewhere = [place.host for place in places if place.host not in probed_hosts(places)]
    if elsewhere:
        raise usage_error(
            f"{options.plan_file} puts stages on {', '.join(dict.fromkeys(elsewhere))}, which is not this machine",
            "Start each stage on its own host (zpptool run-stage --plan), and here: zpptool serve --upstream"
            f" http://{url_host(places[0].host)}:{plan.api_port}",
        )
    return tuple(
        msgspec.structs.replace(
            spec_of_plan(plan, stage, options.model or options.pipeline_dir, options.runtime),
            served_name=options.served_name,
            source=options.source,
        )
        for stage in range(len(plan.stages))
    )


def _replica(
    specs: tuple[StageSpec, ...], number: int, options: ServeOptions, env: Sequence[Mapping[str, str]]
) -> PipelineLaunchPlan:
    """The launch plan of the pipeline with that number: the first one has the given ports, each later one the next
    ports after them."""
    if options.plan_file is not None:
        if number:
            raise usage_error("a plan holds the addresses of one pipeline", "Leave out --replicas, or --plan.")
        return PipelineLaunchPlan(specs, tuple(env), over_ipc=False, any_port=False)
    api_port = options.api_port + number if options.api_port is not None else specs[0].api_port
    specs = tuple(msgspec.structs.replace(spec, api_port=api_port) for spec in specs)
    if options.base_port is not None:
        links = plan_endpoints(len(specs), options.base_port + number * (len(specs) + 1))
        specs = tuple(
            msgspec.structs.replace(spec, bind=link.bind, connect=link.connect)
            for spec, link in zip(specs, links, strict=True)
        )
    return PipelineLaunchPlan(specs, tuple(env), over_ipc=options.base_port is None, any_port=options.api_port is None)


def _refuse_taken_ports(launch_plan: PipelineLaunchPlan, front_port: int) -> None:
    """Refuse ports that are in use, or given twice."""
    api_port = launch_plan.specs[0].api_port
    links = () if launch_plan.over_ipc else launch_plan.specs
    ports = {str(api_port) if not launch_plan.any_port else "", *(spec.bind.rpartition(":")[2] for spec in links)}
    if str(front_port) in ports:
        raise address_error(
            f"the front's port {front_port} is also one of the pipeline's", "Choose another --port, or other ports."
        )
    places = [StageEndpoints(spec.stage, DEFAULT_HOST, spec.bind, spec.connect) for spec in links]
    places = places or [StageEndpoints(0, DEFAULT_HOST, "", "")]
    if links:
        open_ports(places, api_port)
    faults = probe_ports(places, None if launch_plan.any_port else api_port)
    if faults:
        raise address_error("; ".join(fault.message for fault in faults), "Give other ports, or none.")


def _refuse_front_options(engine_args: Sequence[str]) -> None:
    for argument in engine_args:
        if any(names_option(argument, option) for option in FRONT_OPTIONS):
            raise usage_error(
                f"{argument} is for the front: clients never connect to the engine's own server",
                "Give it to zpptool serve, before --; see zpptool serve --help.",
            )


def _within_memory(
    specs: tuple[StageSpec, ...], groups: Sequence[Group], given: Sequence[str]
) -> tuple[StageSpec, ...]:
    """The specs, in which those that compute on the CPU share its free memory.

    Raises:
        ZppError: (FAILURE) their weights do not fit.
    """
    own = [
        stage
        for stage, (spec, group) in enumerate(zip(specs, groups, strict=True))
        if not group and (computes_on_cpu(spec.device) or (spec.device == AUTO and not NVIDIA_DEVICE.exists()))
    ]
    if not own:
        return specs
    needed, free = [stage_bytes(specs[stage]) for stage in own], free_memory()
    refuse_too_much(needed, free)
    shared = iter(_with_kv_share(tuple(specs[stage] for stage in own), given, needed, free))
    return tuple(next(shared) if stage in own else spec for stage, spec in enumerate(specs))


def _with_kv_share(
    specs: tuple[StageSpec, ...], given: Sequence[str], needed: Sequence[int], free: int
) -> tuple[StageSpec, ...]:
    """The specs with a share of the free memory for each stage's KV cache, where the engine is vLLM and the user's
    engine arguments do not set the cache's size."""
    if specs[0].engine is not Engine.VLLM or any(has_option(given, option) for option in (UTILIZATION, KV_BYTES)):
        return specs
    share = kv_share(needed, free)
    return tuple(
        msgspec.structs.replace(
            spec, engine_args=(*spec.engine_args, KV_BYTES, str(share // spec.tensor_parallel_size))
        )
        for spec in specs
    )
