# SPDX-License-Identifier: Apache-2.0
"""`zpptool run-stage`: one stage of a pipeline in the foreground; stage 0 with the head and the OpenAI API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from zpptool.cli.options import (
    BasePortOption,
    BeatTimeoutOption,
    DeviceOption,
    DtypeOption,
    HostsOption,
    InsecureOption,
    KeysOption,
    ModelOption,
    RangesOption,
    RecoveryDeadlineOption,
    StandbyOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TensorParallelOption,
    TraceOption,
    WireCodecOption,
    host_list,
    model_and_ranges,
    refuse_idle_standby,
    tensor_parallel_sizes,
)
from zpptool.config import endpoints as ports
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import load_plan_file
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.wire.compression.adaptive import WireCodec

SAID_BY_PLAN = (
    "num_stages", "layer_range", "ranges", "engine", "bind_port", "bind_host", "previous", "last", "next_addr", "bind",
    "connect", "base_port", "hosts", "api_host", "api_port", "dtype", "wire_codec",
)  # fmt: skip


def run_stage(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="A stage directory, a directory of stages, or a full checkpoint."),
    ] = None,
    model: ModelOption = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="The plan that zpptool plan wrote; with --stage-idx.")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage-idx", "--pipeline-stage-idx", metavar="K", help="This stage's place, from 0.")
    ] = None,
    num_stages: Annotated[
        int | None,
        typer.Option(
            "--total-stages", "--pipeline-total-stages", "--num-stages", metavar="N", help="How many stages there are."
        ),
    ] = None,
    layer_range: Annotated[
        str | None,
        typer.Option(
            "--layer-range", "--pipeline-layer-range", metavar="START-END", help="The layers of this stage: 8-16."
        ),
    ] = None,
    ranges: RangesOption = None,
    engine: Annotated[Engine, typer.Option("--engine", help="What computes the layers.")] = Engine.VLLM,
    bind_port: Annotated[
        int | None,
        typer.Option(
            "--local-bind-port",
            "--pipeline-local-bind-port",
            metavar="PORT",
            help="The port this stage sends from; the base port + its place if not given.",
        ),
    ] = None,
    bind_host: Annotated[
        str | None,
        typer.Option("--bind-host", metavar="ADDR", help="The address to bind at; 127.0.0.1, or this stage's host."),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            "--prev-stage-service-addr",
            "--pipeline-prev-stage-service-addr",
            metavar="HOST:PORT",
            help="Where the stage before sends from.",
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option(
            "--prev-stage-addr",
            "--pipeline-prev-stage-addr",
            metavar="HOST:PORT",
            help="Stage 0 only: where the last stage sends from (the return port).",
        ),
    ] = None,
    next_addr: Annotated[
        str | None,
        typer.Option("--next-stage-addr", "--pipeline-next-stage-addr", metavar="HOST:PORT", hidden=True),
    ] = None,
    bind: Annotated[
        str | None, typer.Option("--bind", metavar="ENDPOINT", help="The whole endpoint to bind (tcp:// or ipc://).")
    ] = None,
    connect: Annotated[
        str | None, typer.Option("--connect", metavar="ENDPOINT", help="The whole endpoint to connect to.")
    ] = None,
    base_port: BasePortOption = ports.DEFAULT_BASE_PORT,
    hosts: HostsOption = None,
    api_host: Annotated[
        str, typer.Option("--host", metavar="ADDR", help="Where stage 0's OpenAI API listens.")
    ] = DEFAULT_HOST,
    api_port: Annotated[
        int, typer.Option("--port", "--api-port", metavar="PORT", help="Stage 0's OpenAI API port.")
    ] = ports.DEFAULT_API_PORT,
    headless: Annotated[
        bool, typer.Option("--headless", help="No API server: the head is a script's zpptool.LLM(..., launch=False).")
    ] = False,
    head_addr: Annotated[
        str | None,
        typer.Option(
            "--head-addr",
            metavar="HOST:PORT",
            help="Headless stage 0: where the script binds; the port after the return port if not given.",
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    gpu_ids: Annotated[
        str | None,
        typer.Option(
            "--gpu-ids",
            "--gpu-id",
            metavar="A,B,...",
            help="The GPUs of this stage, as many as --tensor-parallel-size; the first that it sees if not given.",
        ),
    ] = None,
    tensor_parallel_size: TensorParallelOption = "1",
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    trace: TraceOption = None,
    beat_timeout: BeatTimeoutOption = 60.0,
    wire_codec: WireCodecOption = WireCodec.NONE,
    recovery_deadline: RecoveryDeadlineOption = 120.0,
    standby: StandbyOption = 0,
    stage_mode: Annotated[str, typer.Option("--pipeline-stage-mode", hidden=True)] = "external",
    external_worker: Annotated[bool, typer.Option("--external-pp-worker", hidden=True)] = False,
) -> None:
    """Run one stage until it is told to stop. Start the stages in any order, each on its own machine if you like.

    Stage 0 also runs the head: scheduler and OpenAI API. Everything after -- goes to the engine as it is, and has to be
    the same on every stage: zpptool run-stage stages/stage_1 -- --max-model-len 4096.

    Links that leave this machine need keys: zpptool keys generate, then --keys FILE on every stage.

    On one host with default ports: run-stage stages/stage_0, run-stage stages/stage_1, ... and nothing else.
    """
    from zpptool.config.gpu_plan import environment_of_one
    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.config.link_security import check_safety
    from zpptool.config.resolve import head_endpoint, refuse_api_port, resolve_links, resolve_place, spec_of_plan
    from zpptool.config.stage_spec import StageSpec
    from zpptool.engines.registry import check_engine
    from zpptool.ring.timeline import check_trace_file
    from zpptool.supervisor.foreground import run_in_foreground
    from zpptool.wire.security.key_files import key_path

    console = Console()
    if stage_mode != "external":
        raise usage_error(f"--pipeline-stage-mode {stage_mode} is not known: every stage is external here")
    if next_addr is not None:
        console.warn("--next-stage-addr is deprecated: it names the stage before; say --prev-stage-service-addr")
    if plan_file is not None:
        _refuse_beside_plan(ctx)
        own = model or (Path(words[0]) if words else None)
        spec = spec_of_plan(load_plan_file(plan_file), stage, own)
    else:
        directory, range_words = model_and_ranges(model, words, ranges)
        place = resolve_place(
            directory, stage=stage, num_stages=num_stages, layer_range=layer_range, ranges=range_words
        )
        endpoints = resolve_links(
            place.stage,
            len(place.partition),
            bind=bind,
            connect=connect,
            bind_host=bind_host,
            bind_port=bind_port,
            previous=_the_stage_before(place.stage, previous, last, next_addr),
            base_port=base_port,
            hosts=host_list(hosts),
        )
        if place.stage == 0 and not headless:
            refuse_api_port(*endpoints, len(place.partition), api_port, base_port, host_list(hosts))
        spec = StageSpec(
            engine=engine,
            model=str(place.directory),
            partition=tuple((own.start, own.end) for own in place.partition),
            stage=place.stage,
            bind=endpoints[0],
            connect=endpoints[1],
            dtype=dtype,
            api_host=api_host,
            api_port=api_port,
            engine_args=tuple(ctx.obj or ()),
            wire_codec=wire_codec,
        )
    sizes = tensor_parallel_sizes(tensor_parallel_size, spec.engine)
    if len(sizes) != 1:
        raise usage_error(f"--tensor-parallel-size {tensor_parallel_size}: a stage has one size, its own")
    if trace is not None:
        check_trace_file(trace)
    if head_addr is not None and not (headless and spec.is_first):
        raise usage_error("--head-addr is for a headless stage 0", "Say --headless too, on stage 0.")
    if headless and spec.engine is not Engine.VLLM:
        raise usage_error("--headless is for vLLM: only zpptool.LLM is a head of its own", "Say --engine vllm.")
    spec = msgspec.structs.replace(
        spec,
        device=device,
        start_timeout_s=start_timeout,
        step_timeout_s=step_timeout,
        beat_timeout_s=beat_timeout,
        tensor_parallel_size=sizes[0],
        trace=str(trace.resolve()) if trace is not None else "",
        keys=str(key_path(keys, spec.stage).resolve()) if keys else "",
        insecure=insecure,
        recovery_deadline_s=0.0 if headless else recovery_deadline,  # a script's head does not outlive a loss
    )
    if headless and spec.is_first:
        spec = msgspec.structs.replace(spec, headless=True, local=head_endpoint(spec.connect, head_addr))
    warning = check_safety(spec)
    if warning:
        console.warn(warning)
    refuse_idle_standby(standby, spec.recovery_deadline_s)
    check_engine(spec.engine)
    run_in_foreground(spec, environment_of_one(spec, parse_gpu_ids(gpu_ids)), standby)


def _refuse_beside_plan(ctx: typer.Context) -> None:
    """A plan says everything but what belongs to this machine; two words on one thing would be one too many."""
    told = [name for name in SAID_BY_PLAN if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    if told or ctx.obj:
        flags = [f"--{name.replace('_', '-')}" for name in told] + (["what follows --"] if ctx.obj else [])
        raise usage_error(f"the plan says it already: leave out {', '.join(flags)}", "Or change the plan.")


def _the_stage_before(stage: int, previous: str | None, last: str | None, deprecated: str | None) -> str | None:
    """The address to connect to: each flag has its stages, and only one may be given."""
    given = [address for address in (previous, last, deprecated) if address is not None]
    if len(given) > 1:
        raise usage_error("the address of the stage before is given more than once")
    if stage > 0 and last is not None:
        raise usage_error("--prev-stage-addr is for stage 0", "Say --prev-stage-service-addr HOST:PORT.")
    return given[0] if given else None
