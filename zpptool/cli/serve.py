# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve`: whole pipelines, kept up, behind one OpenAI endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpptool.cli.front_limits import (
    BodyTimeoutOption,
    HeaderTimeoutOption,
    KeepAliveTimeoutOption,
    MaxBufferedBytesOption,
    MaxConnectionsOption,
    MaxConnectionsPerAddressOption,
    MaxRequestBytesOption,
    RequestTimeoutOption,
    RouteByPrefixOption,
    connection_limits,
    request_limits,
)
from zpptool.cli.options import (
    TYPED_KEY_WARNING,
    ApiHostOption,
    BeatTimeoutOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    GpuIdsOption,
    LocalApiPortOption,
    LocalBasePortOption,
    LocalPlanOption,
    LogDirOption,
    ModelOption,
    NumStagesOption,
    PipelineDirOption,
    QuietOption,
    RangesOption,
    RecoveryDeadlineOption,
    RevisionOption,
    ShutdownTimeoutOption,
    StandbyOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TokenOption,
    VllmConfigOption,
    on_command_line,
    runtime_options,
)
from zpptool.cli.serve_model import find_served_model
from zpptool.config.endpoints import DEFAULT_API_PORT
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST

if TYPE_CHECKING:
    from zpptool.serve.extension import FrontExtension
    from zpptool.serve.named_keys import ApiKey
    from zpptool.serve.remote_address import RemoteAddress
GIVEN_BY_PLAN = ("num_stages", "ranges", "base_port", "api_port", "engine", "dtype")
"""Parameters that a plan gives."""


def serve(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="A full checkpoint: its path, or org/name; or stages that split wrote."),
    ] = None,
    pipeline_dir: PipelineDirOption = None,
    plan_file: LocalPlanOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    vllm_config: VllmConfigOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    engine: EngineOption = Engine.VLLM,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    gpu_ids: GpuIdsOption = None,
    replicas: Annotated[
        int, typer.Option("--replicas", metavar="N", min=1, help="How many whole pipelines to start.")
    ] = 1,
    upstream: Annotated[
        list[str] | None,
        typer.Option("--upstream", metavar="URL", help="A pipeline that runs elsewhere; may be given several times."),
    ] = None,
    host: ApiHostOption = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="The front's port; 0 for any that is free.")
    ] = DEFAULT_API_PORT,
    base_port: LocalBasePortOption = None,
    api_port: LocalApiPortOption = None,
    served_name: Annotated[
        str, typer.Option("--served-model-name", metavar="NAME", help="What requests call the model.")
    ] = "",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Ask clients for this key; may be given several times. Other users see what is typed: ZPP_API_KEY.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="Keys to ask for, one a line: KEY, or NAME: KEY."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve without keys where other machines can reach the front.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="A name that clients may use for the front; * for any."),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-origins", metavar="ORIGIN", help="An origin whose pages may call the API; a JSON list, or *."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--ssl-certfile", metavar="FILE", help="Serve TLS with this certificate (PEM).")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--ssl-keyfile", metavar="FILE", help="The certificate's key (PEM).")
    ] = None,
    max_request_bytes: MaxRequestBytesOption = 64 << 20,
    request_timeout: RequestTimeoutOption = 0.0,
    max_buffered_bytes: MaxBufferedBytesOption = 1 << 30,
    route_by_prefix: RouteByPrefixOption = False,
    max_connections: MaxConnectionsOption = 4096,
    max_connections_per_address: MaxConnectionsPerAddressOption = 2048,
    header_timeout: HeaderTimeoutOption = 10.0,
    body_timeout: BodyTimeoutOption = 120.0,
    keep_alive_timeout: KeepAliveTimeoutOption = 5,
    recovery_deadline: RecoveryDeadlineOption = None,
    standby: StandbyOption = 0,
    shutdown_timeout: ShutdownTimeoutOption = 30.0,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            help="Restart a pipeline N times in a row; after another failure, give up.",
        ),
    ] = 5,
    batch_dir: Annotated[
        Path | None,
        typer.Option("--batch-dir", metavar="DIR", help="Offer the Batch API, and keep its files and batches here."),
    ] = None,
    log_dir: LogDirOption = None,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    beat_timeout: BeatTimeoutOption = 60.0,
    quiet: QuietOption = False,
) -> None:
    """Start every stage of MODEL on this machine, keep the pipeline up, and serve the OpenAI API.

    Ready means that a token has passed through the whole ring. A stage that is lost is started again, and every answer
    under way goes on with the same tokens; meanwhile new requests wait. Ctrl-C lets answers end first; a second one
    does not wait. / is a page that shows the ring; /readyz, /metrics and /pipeline/status are for programs. What
    follows -- goes to the engine.

    Exit code 6: the pipeline could not be kept up. 130: it was interrupted.
    """
    from zpptool.config.engine_arguments import expanded_arguments
    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.config.runtime_options import refuse_idle_standby
    from zpptool.net.api_exposure import open_api_warning, refuse_open_front
    from zpptool.serve.front_access import access_rules
    from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving
    from zpptool.serve.run import serve as run
    from zpptool.serve.serve_options import ServeSettings

    runtime = runtime_options(ctx)
    refuse_idle_standby(standby, runtime.recovery_deadline_s)
    console = Console(quiet=quiet)
    keys = _api_keys(ctx, api_key, api_key_file, console)
    refuse_open_front(host, has_keys=bool(keys), insecure=insecure)
    if warning := open_api_warning(host, has_keys=bool(keys)):
        console.warn(warning)
    upstreams = _upstreams(ctx, upstream, console)
    named = model is not None or bool(arguments) or pipeline_dir is not None or plan_file is not None
    if not named and not upstream:
        raise usage_error("no model is named", "Name a model, --pipeline-dir, --plan, or an --upstream.")
    launch_plans: tuple[PipelineLaunchPlan, ...] = ()
    if named:
        if plan_file is not None and any(on_command_line(ctx, name) for name in GIVEN_BY_PLAN):
            raise usage_error(
                "the plan gives these already: stages, ranges, ports, engine, dtype", "Or change the plan."
            )
        found = find_served_model(ctx, pipeline_dir, plan_file, (model, revision, token), arguments, ranges, console)
        launch_plans = plan_serving(
            ServeOptions(
                model=found.whole,
                source=found.source,
                pipeline_dir=found.stages,
                plan_file=plan_file,
                num_stages=num_stages,
                ranges=tuple(found.ranges),
                engine=engine,
                dtype=dtype,
                gpu_ids=parse_gpu_ids(gpu_ids),
                port=port,
                base_port=base_port,
                api_port=api_port,
                replicas=replicas,
                served_name=served_name or found.served,
                engine_args=tuple(ctx.obj or ()),
                runtime=runtime,
            )
        )
    head = launch_plans[0].specs[0] if launch_plans else None
    engine_args = expanded_arguments(head.engine, head.engine_args) if head else ()
    serving = ServeSettings(
        launch_plans=launch_plans,
        upstreams=upstreams,
        host=host,
        port=port,
        certificate=certificate,
        key=key,
        access=access_rules(keys, host, allowed_host or (), allowed_origins or (), engine_args),
        limits=request_limits(ctx, keep_key=not keys),
        connections=connection_limits(ctx),
        recovery_deadline_s=runtime.recovery_deadline_s,
        drain_timeout_s=shutdown_timeout,
        max_restarts=max_restarts,
        log_dir=log_dir,
        spares=standby,
        extension=_batch_api(batch_dir),
    )
    try:
        run(serving, console)
    finally:
        if serving.extension is not None:
            serving.extension.close()


def _batch_api(directory: Path | None) -> FrontExtension | None:
    """The Batch API that keeps its files in a directory; None for none."""
    if directory is None:
        return None
    from zpptool.batch.api.extension import BatchApi

    return BatchApi(directory)


def _api_keys(ctx: typer.Context, given: list[str] | None, file: Path | None, console: Console) -> tuple[ApiKey, ...]:
    """The keys that clients are asked for; warns of those that were typed.

    Raises:
        ZppError: (USAGE) keys are set, and there is none.
    """
    from zpptool.serve.named_keys import collect_keys, refuse_empty_variables

    refuse_empty_variables(os.environ)
    if on_command_line(ctx, "api_key"):
        console.warn(TYPED_KEY_WARNING)
    keys = collect_keys(given or (), file)
    source = ctx.get_parameter_source("api_key")
    if not keys and source is not None and source.name != "DEFAULT":
        raise usage_error("api-key is set and empty", "Give it a value, or leave it out to require no key.")
    return keys


def _upstreams(ctx: typer.Context, given: list[str] | None, console: Console) -> tuple[RemoteAddress, ...]:
    """The addresses of pipelines elsewhere; warns of credentials that were typed."""
    from zpptool.serve.remote_address import parse_address, refuse_two_credentials

    addresses = tuple(parse_address(text) for text in given or ())
    refuse_two_credentials(addresses)
    if on_command_line(ctx, "upstream") and any(address.authorization for address in addresses):
        console.warn(
            "every user of this machine can read the credentials of --upstream in the list of processes (ps):"
            " set ZPP_UPSTREAM, or use a --config file"
        )
    return addresses
