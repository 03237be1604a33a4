# SPDX-License-Identifier: Apache-2.0
"""`zpptool test-pipeline`: run all stages on this machine and compare their tokens with the unsplit model's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zpptool.cli.options import (
    DeviceOption,
    DtypeOption,
    EngineOption,
    GpuIdsOption,
    JsonOption,
    LocalApiPortOption,
    LocalBasePortOption,
    LogDirOption,
    ModelOption,
    NumStagesOption,
    PipelineDirOption,
    QuietOption,
    RangesOption,
    RevisionOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TensorParallelOption,
    TokenOption,
    TraceOption,
    VllmConfigOption,
    WireCodecOption,
    model_and_ranges,
    path_text,
    runtime_options,
)
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import ExitCode, usage_error
from zpptool.log import hide_information
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.witness.options import Level

DEFAULT_PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time there was a")


def test_pipeline(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="A full checkpoint (path or org/name) to load from."),
    ] = None,
    pipeline_dir: PipelineDirOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    vllm_config: VllmConfigOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    engine: EngineOption = Engine.TRANSFORMERS,
    test_input: Annotated[
        list[str] | None,
        typer.Option("--test-input", "--prompt", metavar="TEXT", help="A prompt; may be given several times."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Ask each --test-input about this image, as a chat message; several times for several images.",
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask each --test-input as a chat message.")] = False,
    no_long_prompts: Annotated[
        bool, typer.Option("--no-long-prompts", help="Ask only --test-input: no prompt longer than a KV block or step.")
    ] = False,
    load: Annotated[
        int,
        typer.Option("--load", metavar="N", min=0, help="Add N requests of mixed lengths that arrive and leave."),
    ] = 0,
    long: Annotated[int, typer.Option("--long", metavar="N", min=0, help="Add a prompt of N tokens.")] = 0,
    batched: Annotated[
        bool,
        typer.Option(
            "--batched",
            help="Let both sides batch prompts as they like. Batches differ, and in bf16 so may tokens: use float32.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max-tokens", metavar="N", min=1, help="Tokens an answer.")
    ] = 32,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    gpu_ids: GpuIdsOption = None,
    tensor_parallel_size: TensorParallelOption = "1",
    base_port: LocalBasePortOption = None,
    api_port: LocalApiPortOption = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write the outcome as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the outcome as JUnit.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the outcome as one HTML page.")
    ] = None,
    witness: Annotated[
        Level | None,
        typer.Option(
            "--witness",
            help="Compare bits too: what stages exchange, what layers compute, or every operation. Default: layers, and"
            " off with vLLM, which has no witness.",
        ),
    ] = None,
    witness_record: Annotated[
        Path | None,
        typer.Option("--witness-record", metavar="FILE", help="Write the unsplit model's hashes, to publish them."),
    ] = None,
    witness_reference: Annotated[
        Path | None,
        typer.Option("--witness-reference", metavar="FILE", help="Compare with hashes that were made elsewhere, too."),
    ] = None,
    localise: Annotated[
        bool,
        typer.Option("--localise/--no-localise", help="Where bits differ, run again to find the layer and the cause."),
    ] = True,
    log_dir: LogDirOption = None,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    trace: TraceOption = None,
    wire_codec: WireCodecOption = WireCodec.NONE,
    multiprocess: Annotated[bool, typer.Option("--multiprocess", hidden=True)] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove that a pipeline gives the unsplit model's tokens, greedily, for several prompts in flight at once.

    Stages come from --pipeline-dir, or load their own layers of MODEL by --num-stages or --ranges. The unsplit
    model is MODEL, or the stages' own tensors put together when only --pipeline-dir is given.

    With the witness, every layer's bits are compared too, and the cause of the first difference is named.

    Exit code 0: identical. 4: not; the table shows the first token that differs. 6: a stage died or timed out.
    What follows -- goes to the engine, on both sides.
    """
    from zpptool.config.engine_flags import check_engine_args
    from zpptool.config.tensor_parallel import tensor_parallel_sizes
    from zpptool.engines.registry import check_engine
    from zpptool.parity.compare import Verdict
    from zpptool.parity.reported_trial import ReportFiles, run_reported_trial
    from zpptool.parity.trial_plan import TrialOptions
    from zpptool.sources.located import whole_model
    from zpptool.sources.names import ModelName

    console = Console(as_json=as_json, quiet=quiet or as_json)
    if console.quiet:
        hide_information()
    check_engine_args(engine, ctx.obj or ())
    check_engine(engine)
    from zpptool.config.gpu_pool import parse_gpu_ids

    text, all_ranges = _model_and_ranges(ctx, pipeline_dir, model, arguments, ranges)
    whole = whole_model(ModelName(text, revision, token), console).directory if text is not None else None
    options = TrialOptions(
        engine=engine,
        model=whole,
        pipeline_dir=pipeline_dir,
        num_stages=num_stages,
        ranges=tuple(all_ranges),
        prompts=tuple(test_input or DEFAULT_PROMPTS),
        as_chat=chat,
        with_long_prompts=not no_long_prompts,
        batched=batched,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        gpu_ids=parse_gpu_ids(gpu_ids),
        base_port=base_port,
        api_port=api_port,
        engine_args=tuple(ctx.obj or ()),
        tensor_parallel_sizes=tensor_parallel_sizes(tensor_parallel_size, engine),
        runtime=runtime_options(ctx, trace=path_text(trace), wire_codec=wire_codec),
        images=tuple(image or ()),
        witness=witness or (Level.LAYERS if engine is Engine.TRANSFORMERS else Level.OFF),
        localise=localise,
        witness_reference=witness_reference,
        load=load,
        long=long,
    )
    outcome = run_reported_trial(options, ReportFiles(report, junit, page, witness_record), log_dir)
    console.result(outcome, lambda out: _show(out, outcome))
    if outcome["verdict"] not in (Verdict.IDENTICAL, Verdict.WITHIN_TOLERANCE):
        raise typer.Exit(ExitCode.MISMATCH)


def _model_and_ranges(
    ctx: typer.Context,
    pipeline_dir: Path | None,
    model: str | None,
    arguments: list[str] | None,
    ranges: list[str] | None,
) -> tuple[str | None, list[str]]:
    """The unsplit model, which may be left out beside --pipeline-dir, and the ranges, which then come from there."""
    if pipeline_dir is None:
        return model_and_ranges(ctx, model, arguments, ranges)
    if ranges:
        raise usage_error("--pipeline-dir has its ranges; leave --ranges out", "Split again for other ranges.")
    return (model_and_ranges(ctx, model, arguments, None)[0] if model or arguments else None), []


def _show(out: Console, outcome: dict[str, Any]) -> None:
    from zpptool.parity.report import summary

    for prompt in outcome["prompts"]:
        out.line(f"prompt     {prompt['prompt']!r} ({prompt['prompt_tokens']} tokens)")
        out.line(f"  unsplit  {prompt['reference_text']!r}")
        out.line(f"  pipeline {prompt['text']!r}")
        out.line(f"  unsplit  {_ids(prompt['reference_token_ids'])}")
        out.line(f"  pipeline {_ids(prompt['token_ids'])}")
        index = prompt["first_difference"]
        out.line("  identical" if index is None else f"  DIFFERENT from token {index} on")
    stages = ", ".join(f"{start}-{end}" for start, end in (stage["layers"] for stage in outcome["stages"]))
    out.line()
    if "witness" in outcome:
        out.line(f"witness: {summary(outcome)}")
    out.line(f"{outcome['num_stages']} stages ({stages}) on {outcome['engine']}, {outcome['seconds']} s")
    out.line(f"verdict: {outcome['verdict']}")


def _ids(token_ids: list[int], limit: int = 16) -> str:
    more = f" ... ({len(token_ids)} tokens)" if len(token_ids) > limit else ""
    return " ".join(map(str, token_ids[:limit])) + more
