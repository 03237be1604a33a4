# SPDX-License-Identifier: Apache-2.0
"""`zpptool run-batch`: every line of a file of requests is computed, and its result is written, exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zpptool.cli.options import (
    ApiKeyOption,
    BeatTimeoutOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    GpuIdsOption,
    JsonOption,
    LocalPlanOption,
    LogDirOption,
    ModelOption,
    NumStagesOption,
    PipelineDirOption,
    QuietOption,
    RangesOption,
    RecoveryDeadlineOption,
    RevisionOption,
    StandbyOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TokenOption,
    UrlOption,
    VllmConfigOption,
    on_command_line,
    runtime_options,
)
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import ExitCode, usage_error
from zpptool.net.addresses import DEFAULT_HOST

if TYPE_CHECKING:
    from zpptool.batch.run import Outcome
    from zpptool.serve.serve_options import ServeSettings

GIVEN_BY_PLAN = ("num_stages", "ranges", "engine", "dtype")
"""Parameters that a plan gives."""
OF_A_PIPELINE = (
    "revision", "token", "vllm_config", "num_stages", "ranges", "engine", "dtype", "device", "gpu_ids",
    "recovery_deadline", "standby", "log_dir", "start_timeout", "step_timeout", "beat_timeout",
)  # fmt: skip
"""Parameters without effect on a pipeline that runs already."""
MAX_REQUEST_BYTES = 64 << 20
MAX_RESTARTS = 20
"""A batch is patient: it restarts its pipeline so many times in a row before it gives up."""
WAIT_S = 120.0
"""How long a request waits in the front for a pipeline that does not recover but is started again, in seconds."""


def run_batch(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="A full checkpoint: its path, or org/name; or stages that split wrote."),
    ] = None,
    input_file: Annotated[
        str, typer.Option("--input-file", "-i", metavar="IN", help="A file, a pattern, - or a URL.")
    ] = "",
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="OUT", help="Where results go.")
    ] = None,
    errors_file: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="Where lines go that failed; OUT.errors.jsonl if not given."),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
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
    default: Annotated[
        list[str] | None,
        typer.Option(
            "--default", metavar="NAME=VALUE", help="A field for lines that do not set it; may be given several times."
        ),
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Write results in the input's order.")] = False,
    invariant: Annotated[
        bool,
        typer.Option("--invariant", help="The same bytes for any number of stages and order of lines; slower."),
    ] = False,
    max_in_flight: Annotated[
        int,
        typer.Option("--max-in-flight", metavar="N", min=1, help="The most lines that are in flight."),
    ] = 1024,
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove OUT, its errors and its journal, and begin anew.")
    ] = False,
    retry_for: Annotated[
        float,
        typer.Option("--retry-for", metavar="S", min=0, help="Seconds that the server may answer nothing at all."),
    ] = 600.0,
    recovery_deadline: RecoveryDeadlineOption = None,
    standby: StandbyOption = 0,
    log_dir: LogDirOption = None,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    beat_timeout: BeatTimeoutOption = 60.0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute every line of IN, in OpenAI's batch format, and write each result to OUT exactly once.

    A pipeline is started for it, or --url names one that runs. Whatever dies, the same command continues where the
    journal beside OUT ends. What follows -- goes to the engine.

    Exit code 1: some lines failed. 3: OUT was begun with something else. 6: the pipeline could not be kept up. 130: it
    was interrupted; the same command continues.
    """
    from zpptool.batch.command import BatchCommand, run_command
    from zpptool.batch.run import parse_defaults
    from zpptool.batch.server import server_url
    from zpptool.batch.workplace import workplace_of

    console = Console(as_json=as_json, quiet=quiet)
    if not input_file or output_file is None:
        raise usage_error("the input or the output is not named", "Name them: -i requests.jsonl -o results.jsonl.")
    named = model is not None or bool(arguments) or pipeline_dir is not None or plan_file is not None
    if named == (url is not None):
        raise usage_error(
            "a model and --url are both named" if named else "neither a model nor --url is named",
            "Name a model, --pipeline-dir or --plan to start a pipeline, or --url of one that runs.",
        )
    if url is not None:
        for name in OF_A_PIPELINE:
            if on_command_line(ctx, name):
                raise usage_error(
                    f"--{name.replace('_', '-')} is for a pipeline that is started here, and --url names one that runs",
                    "Leave one of the two out.",
                )
        if ctx.obj:
            raise usage_error("engine arguments are for a pipeline that run-batch starts", "Leave them or --url out.")
    command = BatchCommand(
        place=workplace_of(output_file, errors_file),
        input=input_file,
        defaults=parse_defaults(default or []),
        limit=max_in_flight,
        ordered=ordered,
        invariant=invariant,
        restart=restart,
        retry_for_s=retry_for,
        url=server_url(url) if url is not None else None,
        api_key=api_key,
        pipeline=_pipeline(ctx, console) if named else None,
    )
    outcome = run_command(command, console)
    console.result(_as_json(outcome), lambda out: out.line(_summary(outcome)))
    if outcome.totals.failed:
        console.warn(f"{outcome.totals.failed} lines failed: {command.place.errors} has them")
        raise typer.Exit(ExitCode.FAILURE)


def _pipeline(ctx: typer.Context, console: Console) -> ServeSettings:
    """The pipeline that the command line asks for, behind a front on a port of this machine."""
    from zpptool.batch.invariance import invariant_arguments, recovers
    from zpptool.cli.serve_model import find_served_model
    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.config.runtime_options import refuse_idle_standby
    from zpptool.net.connection_limits import ConnectionLimits
    from zpptool.serve.front_access import FrontAccess
    from zpptool.serve.launch_plan import ServeOptions, plan_serving
    from zpptool.serve.proxy import ProxyLimits
    from zpptool.serve.serve_options import ServeSettings

    given = ctx.params
    if given["plan_file"] is not None and any(on_command_line(ctx, name) for name in GIVEN_BY_PLAN):
        raise usage_error("the plan gives these already: stages, ranges, engine, dtype", "Or change the plan.")
    engine_args: tuple[str, ...] = tuple(ctx.obj or ())
    runtime = runtime_options(ctx)
    if given["invariant"]:
        if given["plan_file"] is not None:
            raise usage_error("--invariant decides engine arguments, and so does a plan", "Name the model itself.")
        engine_args = (*engine_args, *invariant_arguments(given["engine"], engine_args))
        if not recovers(given["engine"]):
            runtime = msgspec.structs.replace(runtime, recovery_deadline_s=0.0)
    refuse_idle_standby(given["standby"], runtime.recovery_deadline_s)
    named = (given["model"], given["revision"], given["token"])
    found = find_served_model(
        ctx, given["pipeline_dir"], given["plan_file"], named, given["arguments"], given["ranges"], console
    )
    plans = plan_serving(
        ServeOptions(
            model=found.whole,
            source=found.source,
            pipeline_dir=found.stages,
            plan_file=given["plan_file"],
            num_stages=given["num_stages"],
            ranges=tuple(found.ranges),
            engine=given["engine"],
            dtype=given["dtype"],
            gpu_ids=parse_gpu_ids(given["gpu_ids"]),
            port=0,
            base_port=None,
            api_port=None,
            replicas=1,
            served_name=found.served,
            engine_args=engine_args,
            runtime=runtime,
        )
    )
    return ServeSettings(
        launch_plans=plans,
        upstreams=(),
        host=DEFAULT_HOST,
        port=0,
        certificate=None,
        key=None,
        access=FrontAccess(),
        limits=ProxyLimits(MAX_REQUEST_BYTES, None, keep_key=False),
        connections=ConnectionLimits(),
        recovery_deadline_s=runtime.recovery_deadline_s or WAIT_S,
        drain_timeout_s=0.0,
        max_restarts=MAX_RESTARTS,
        log_dir=given["log_dir"],
        spares=given["standby"],
    )


def _as_json(outcome: Outcome) -> dict[str, Any]:
    totals = outcome.totals
    return {
        "done": totals.done,
        "failed": totals.failed,
        "total": outcome.total,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.answer_tokens,
        "seconds": round(outcome.took_s, 3),
    }


def _summary(outcome: Outcome) -> str:
    from zpptool.batch.progress import duration

    totals = outcome.totals
    rate = f", {outcome.new_tokens / outcome.took_s:.1f} tokens/s" if outcome.new_tokens else ""
    return (
        f"{totals.done} of {outcome.total} lines done, {totals.failed} failed; {totals.prompt_tokens} prompt tokens,"
        f" {totals.answer_tokens} generated; this start took {duration(outcome.took_s)}{rate}"
    )
