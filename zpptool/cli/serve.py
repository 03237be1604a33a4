# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve`: whole pipelines, kept up, behind one OpenAI endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zpptool.cli.options import (
    BeatTimeoutOption,
    DeviceOption,
    DtypeOption,
    GpuIdsOption,
    ModelOption,
    NumStagesOption,
    QuietOption,
    RangesOption,
    StandbyOption,
    StartTimeoutOption,
    StepTimeoutOption,
    model_and_ranges,
    on_command_line,
    refuse_idle_standby,
)
from zpptool.config import endpoints as ports
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.regular_file import read_regular

MAX_API_KEYS_BYTES = 1 << 20
SAID_BY_PLAN = ("num_stages", "ranges", "base_port", "api_port", "engine", "dtype")


def serve(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="A full checkpoint, or stages that split wrote.")
    ] = None,
    pipeline_dir: Annotated[
        Path | None, typer.Option("--pipeline-dir", metavar="DIR", help="The stages that zpptool split wrote.")
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A plan of which every stage is on this machine.")
    ] = None,
    model: ModelOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    engine: Annotated[Engine, typer.Option("--engine", help="What computes the layers.")] = Engine.VLLM,
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
    host: Annotated[str, typer.Option("--host", metavar="ADDR", help="Where the front listens.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="The front's port; 0 for any that is free.")
    ] = ports.DEFAULT_API_PORT,
    base_port: Annotated[
        int | None,
        typer.Option("--base-port", metavar="PORT", help="Link the stages over tcp from this port on; else over ipc."),
    ] = None,
    api_port: Annotated[
        int | None,
        typer.Option("--api-port", metavar="PORT", help="The head's own port, behind the front; any if not given."),
    ] = None,
    served_name: Annotated[
        str, typer.Option("--served-model-name", metavar="NAME", help="What requests call the model.")
    ] = "",
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", metavar="KEY", help="Ask clients for this key."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="Keys to ask for, one a line.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--ssl-certfile", metavar="FILE", help="Speak TLS with this certificate (PEM).")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--ssl-keyfile", metavar="FILE", help="The certificate's key (PEM).")
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option("--max-request-bytes", metavar="N", min=1, help="The most bytes of a request's body.")
    ] = 64 << 20,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", metavar="S", min=0, help="Seconds a request may take; 0 for no limit.")
    ] = 0.0,
    recovery_deadline: Annotated[
        float,
        typer.Option(
            "--recovery-deadline",
            metavar="S",
            min=0,
            help="Seconds a lost stage may take to come back, and a request waits; 0: a loss breaks off its answers.",
        ),
    ] = 120.0,
    standby: StandbyOption = 0,
    drain_timeout: Annotated[
        float, typer.Option("--drain-timeout", metavar="S", min=0, help="Seconds that answers have to end at Ctrl-C.")
    ] = 30.0,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            help="Restart a pipeline N times in a row; after another failure, give up.",
        ),
    ] = 5,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", metavar="DIR", help="Keep the logs of all processes here.")
    ] = None,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    beat_timeout: BeatTimeoutOption = 60.0,
    quiet: QuietOption = False,
) -> None:
    """Start every stage of MODEL on this machine, keep the pipeline up, and serve the OpenAI API.

    Ready means that a token has gone round the ring. A stage that is lost is started again, and every answer under way
    goes on with the same tokens; meanwhile new requests wait. Ctrl-C lets answers end first; a second one does not
    wait. / is a page that shows the ring, /readyz, /metrics and /pipeline/status tell machines. What follows -- goes to
    the engine.

    Exit code 6: the pipeline could not be kept up. 130: it was told to stop.
    """
    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.serve.launch_plan import PipelineLaunchPlan, ServeOptions, plan_serving
    from zpptool.serve.proxy import ProxyLimits
    from zpptool.serve.remote import checked_address
    from zpptool.serve.run import serve as run
    from zpptool.serve.serve_options import ServeSettings

    refuse_idle_standby(standby, recovery_deadline)
    keys = [*(api_key or ()), *_keys_in(api_key_file)]
    named = model is not None or bool(words) or pipeline_dir is not None or plan_file is not None
    if not named and not upstream:
        raise usage_error("no model is named", "Name a model, --pipeline-dir, --plan, or an --upstream.")
    orders: tuple[PipelineLaunchPlan, ...] = ()
    if named:
        whole, range_words = _model_and_ranges(pipeline_dir, plan_file, model, words, ranges)
        if whole is not None and pipeline_dir is None and any(whole.glob("stage_*/zpp-stage.json")):
            whole, pipeline_dir = None, whole
        if plan_file is not None and any(map(on_command_line, SAID_BY_PLAN)):
            raise usage_error("the plan says it already: stages, ranges, ports, engine, dtype", "Or change the plan.")
        orders = plan_serving(
            ServeOptions(
                model=whole,
                pipeline_dir=pipeline_dir,
                plan_file=plan_file,
                num_stages=num_stages,
                ranges=tuple(range_words),
                engine=engine,
                dtype=dtype,
                device=device,
                gpu_ids=parse_gpu_ids(gpu_ids),
                port=port,
                base_port=base_port,
                api_port=api_port,
                replicas=replicas,
                served_name=served_name,
                engine_args=tuple(ctx.obj or ()),
                start_timeout_s=start_timeout,
                step_timeout_s=step_timeout,
                recovery_deadline_s=recovery_deadline,
                beat_timeout_s=beat_timeout,
            )
        )
    serving = ServeSettings(
        launch_plans=orders,
        upstreams=tuple(checked_address(text) for text in upstream or ()),
        host=host,
        port=port,
        certificate=certificate,
        key=key,
        api_keys=tuple(keys),
        limits=ProxyLimits(max_request_bytes, request_timeout or None, keep_key=not keys),
        recovery_deadline_s=recovery_deadline,
        drain_timeout_s=drain_timeout,
        max_restarts=max_restarts,
        log_dir=log_dir,
        spares=standby,
    )
    run(serving, Console(quiet=quiet))


def _model_and_ranges(
    pipeline_dir: Path | None,
    plan_file: Path | None,
    model: Path | None,
    words: list[str] | None,
    ranges: list[str] | None,
) -> tuple[Path | None, list[str]]:
    """Beside a plan or a directory of stages the model may be left out."""
    if pipeline_dir is None and plan_file is None:
        return model_and_ranges(model, words, ranges)
    if ranges and pipeline_dir is not None:
        raise usage_error("--pipeline-dir has its ranges; leave --ranges out", "Split again for other ranges.")
    if pipeline_dir is not None and (model or words):
        raise usage_error("a model and --pipeline-dir are named", "Name one of them.")
    return model_and_ranges(model, words, ranges) if model or words else (None, list(ranges or ()))


def _keys_in(file: Path | None) -> list[str]:
    """The lines of a key file; empty ones are none."""
    if file is None:
        return []
    try:
        text = read_regular(file, MAX_API_KEYS_BYTES, "file of API keys").decode()
    except (OSError, UnicodeDecodeError) as cause:
        raise usage_error(f"--api-key-file {file} cannot be read: {cause}") from cause
    found = [key for line in text.splitlines() if (key := line.strip())]
    if not found:
        raise usage_error(f"--api-key-file {file} holds no key", "One a line.")
    return found
