# SPDX-License-Identifier: Apache-2.0
"""`zpptool run-stage`: one stage of a pipeline in the foreground; stage 0 with the head and the OpenAI API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from zpptool.cli.options import (
    ApiHostOption,
    BasePortOption,
    BeatTimeoutOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    HostsOption,
    InsecureOption,
    KeysOption,
    ModelOption,
    PlanOption,
    RangesOption,
    RecoveryDeadlineOption,
    RevisionOption,
    ShutdownTimeoutOption,
    StageApiPortOption,
    StandbyOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TensorParallelOption,
    TokenOption,
    TraceOption,
    VllmConfigOption,
    WireCodecOption,
    comma_separated,
    model_and_ranges,
    on_command_line,
    path_text,
    runtime_options,
)
from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.wire.compression.adaptive import WireCodec

if TYPE_CHECKING:
    from zpptool.config.stage_spec import StageSpec
    from zpptool.invites.join import Joined

GIVEN_BY_PLAN = (
    "num_stages", "layer_range", "ranges", "engine", "bind_port", "bind_host", "previous", "last", "next_addr", "bind",
    "connect", "base_port", "hosts", "api_host", "api_port", "dtype", "wire_codec",
    "tensor_parallel_size",
)  # fmt: skip
"""Parameters that a plan gives."""
GIVEN_BY_INVITE = ("plan_file", "stage", "keys", "insecure")
"""Parameters that an invite gives, beside those of its plan."""
TYPED_INVITE_WARNING = (
    "every user of this machine can read --invite in the list of processes (ps): save it in a file with mode 0600, and"
    " name that, or set ZPP_INVITE"
)


def run_stage(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="A stage directory, a directory of stages, or a full checkpoint (its path, org/name)."
        ),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    vllm_config: VllmConfigOption = None,
    plan_file: PlanOption = None,
    invite: Annotated[
        str | None,
        typer.Option(
            "--invite",
            metavar="TOKEN",
            help="Join with this token of zpptool plan --invite, or the file of one; it gives plan, stage and keys.",
        ),
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage-idx", "--pipeline-stage-idx", metavar="K", help="This stage's index, from 0.")
    ] = None,
    num_stages: Annotated[
        int | None,
        typer.Option("--total-stages", "--pipeline-total-stages", "--num-stages", metavar="N", help="How many stages."),
    ] = None,
    layer_range: Annotated[
        str | None,
        typer.Option(
            "--layer-range", "--pipeline-layer-range", metavar="START-END", help="The layers of this stage: 8-16."
        ),
    ] = None,
    ranges: RangesOption = None,
    engine: EngineOption = Engine.VLLM,
    bind_port: Annotated[
        int | None,
        typer.Option(
            "--local-bind-port",
            "--pipeline-local-bind-port",
            metavar="PORT",
            help="The port this stage sends from; the base port + its index if not given.",
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
    base_port: BasePortOption = DEFAULT_BASE_PORT,
    hosts: HostsOption = None,
    api_host: ApiHostOption = DEFAULT_HOST,
    api_port: StageApiPortOption = DEFAULT_API_PORT,
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
    recovery_deadline: RecoveryDeadlineOption = None,
    standby: StandbyOption = 0,
    shutdown_timeout: ShutdownTimeoutOption = 30.0,
    stage_mode: Annotated[str, typer.Option("--pipeline-stage-mode", hidden=True)] = "external",
    external_worker: Annotated[bool, typer.Option("--external-pp-worker", hidden=True)] = False,
) -> None:
    """Run one stage until it is interrupted. Start the stages in any order, each on its own machine if you like.

    After Ctrl-C or SIGTERM stage 0 refuses requests, answers those in progress, and stops the pipeline. A later stage
    computes until then. Either takes --shutdown-timeout at most, and a second Ctrl-C ends it at once.

    Stage 0 also runs the head: scheduler and OpenAI API. Everything after -- is passed to the engine unchanged, and has
    to be the same on every stage: zpptool run-stage stages/stage_1 -- --max-model-len 4096.

    Links that leave this machine need keys: zpptool keys generate, then --keys FILE on every stage. With an --invite
    of zpptool plan nothing else is needed.

    On one host with default ports: run-stage stages/stage_0, run-stage stages/stage_1, ... and nothing else.
    """
    from zpptool.config.engine_flags import check_engine_args
    from zpptool.config.gpu_plan import environment_of_one
    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.config.stage_links import LinkAddresses
    from zpptool.config.stage_model import with_model
    from zpptool.config.stage_options import StageOptions, resolve_stage
    from zpptool.engines.registry import check_engine
    from zpptool.ring.timeline import check_trace_file
    from zpptool.supervisor.foreground import run_in_foreground

    console = Console()
    if stage_mode != "external":
        raise usage_error(f"--pipeline-stage-mode {stage_mode} is not known: every stage is external here")
    if next_addr is not None:
        console.warn("--next-stage-addr is deprecated: it names the stage before; use --prev-stage-service-addr")
        if previous is not None:
            raise usage_error("the address of the stage before is given more than once")
    if invite is not None:
        joined_as = _join(ctx, invite, console)
        plan_file, stage, keys = joined_as.plan_file, joined_as.stage, joined_as.keys
    text: str | None
    all_ranges: list[str]
    if plan_file is not None:
        _refuse_beside_plan(ctx)
        text, all_ranges = model or (arguments[0] if arguments else None), []
    else:
        text, all_ranges = model_and_ranges(ctx, model, arguments, ranges)
    runtime = runtime_options(
        ctx,
        trace=path_text(trace),
        keys=str(keys) if keys is not None else "",
        insecure=insecure,
        wire_codec=wire_codec,
    )
    addresses = LinkAddresses(
        bind=bind,
        connect=connect,
        bind_host=bind_host,
        bind_port=bind_port,
        previous=previous if next_addr is None else next_addr,
        last=last,
        base_port=base_port,
        hosts=comma_separated(hosts),
    )
    options = StageOptions(
        model=None,
        plan_file=plan_file,
        stage=stage,
        num_stages=num_stages,
        layer_range=layer_range,
        ranges=tuple(all_ranges),
        engine=engine,
        addresses=addresses,
        api_host=api_host,
        api_port=api_port,
        headless=headless,
        head_addr=head_addr,
        dtype=dtype,
        tensor_parallel_size=tensor_parallel_size,
        engine_args=tuple(ctx.obj or ()),
        standby=standby,
        runtime=runtime,
    )
    if plan_file is None:
        check_engine_args(engine, options.engine_args)
    if trace is not None:
        check_trace_file(trace)
    spec = resolve_stage(with_model(options, text, revision, token, console))
    if not insecure:
        _warn_of_open_api(spec, console)
    check_engine(spec.engine)
    run_in_foreground(spec, environment_of_one(spec, parse_gpu_ids(gpu_ids)), standby, shutdown_timeout)


def _warn_of_open_api(spec: StageSpec, console: Console) -> None:
    """Warn of an API without a key at an address that other machines may reach. It is not refused: in a container,
    whether others reach the port is decided by the network outside."""
    from zpptool.config.engine_arguments import expanded_arguments, has_option
    from zpptool.net.api_exposure import open_api_warning

    if not spec.is_first or spec.headless:
        return
    arguments = expanded_arguments(spec.engine, spec.engine_args)
    has_keys = bool(os.environ.get("VLLM_API_KEY")) or has_option(arguments, "--api-key")
    if warning := open_api_warning(spec.api_host, has_keys=has_keys and spec.engine is Engine.VLLM):
        console.warn(warning)


def _join(ctx: typer.Context, invite: str, console: Console) -> Joined:
    """Join the pipeline; where this is stage 0, others can join until the command ends."""
    from zpptool.invites.join import joined
    from zpptool.invites.saved import given_invite, is_token

    given = [
        item.opts[0]
        for item in ctx.command.params
        if item.name in GIVEN_BY_INVITE and ctx.params[item.name] is not None and ctx.params[item.name] is not False
    ]
    if given:
        raise usage_error(f"the invite gives these already: leave out {', '.join(given)}", "Or leave out --invite.")
    _refuse_beside_plan(ctx)
    if is_token(invite) and on_command_line(ctx, "invite"):
        console.warn(TYPED_INVITE_WARNING)
    return ctx.with_resource(joined(given_invite(invite)))


def _refuse_beside_plan(ctx: typer.Context) -> None:
    """Refuse typed options that the plan gives, so that no option has two values."""
    given = [item for item in ctx.command.params if item.name in GIVEN_BY_PLAN and on_command_line(ctx, item.name)]
    if given or ctx.obj:
        flags = [item.opts[0] for item in given] + (["what follows --"] if ctx.obj else [])
        raise usage_error(f"the plan gives these already: leave out {', '.join(flags)}", "Or change the plan.")
