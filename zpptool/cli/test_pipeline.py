# SPDX-License-Identifier: Apache-2.0
"""`zpptool test-pipeline`: run all stages on this machine and compare their tokens with the unsplit model's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zpptool.cli.options import (
    DeviceOption,
    DtypeOption,
    GpuIdsOption,
    JsonOption,
    ModelOption,
    NumStagesOption,
    QuietOption,
    RangesOption,
    StartTimeoutOption,
    StepTimeoutOption,
    TensorParallelOption,
    TraceOption,
    WireCodecOption,
    model_and_ranges,
    tensor_parallel_sizes,
)
from zpptool.config.engine_kind import Engine
from zpptool.console import SCHEMA_VERSION, Console
from zpptool.errors import ExitCode, ZppError, usage_error
from zpptool.log import hide_information
from zpptool.parity.compare import Verdict
from zpptool.wire.compression.adaptive import WireCodec

DEFAULT_PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time there was a")


def test_pipeline(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="A full checkpoint to load from dynamically.")
    ] = None,
    pipeline_dir: Annotated[
        Path | None, typer.Option("--pipeline-dir", metavar="DIR", help="The stages that zpptool split wrote.")
    ] = None,
    model: ModelOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    engine: Annotated[Engine, typer.Option("--engine", help="What computes the layers.")] = Engine.TRANSFORMERS,
    test_input: Annotated[
        list[str] | None,
        typer.Option("--test-input", "--prompt", metavar="TEXT", help="A prompt; may be given several times."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask each --test-input as a chat message.")] = False,
    no_long_prompts: Annotated[
        bool, typer.Option("--no-long-prompts", help="Ask only --test-input: no prompt longer than a KV block or step.")
    ] = False,
    batched: Annotated[
        bool,
        typer.Option(
            "--batched",
            help="Let both sides batch prompts as they like. Batches differ, and in bf16 so may tokens: use float32.",
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens an answer.")] = 32,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    gpu_ids: GpuIdsOption = None,
    tensor_parallel_size: TensorParallelOption = "1",
    base_port: Annotated[
        int | None,
        typer.Option("--base-port", metavar="PORT", help="Link the stages over tcp from this port on; else over ipc."),
    ] = None,
    api_port: Annotated[
        int | None, typer.Option("--api-port", metavar="PORT", help="The API's port; any free one if not given.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write the outcome as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the outcome as JUnit.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", metavar="DIR", help="Keep the logs of all processes here.")
    ] = None,
    start_timeout: StartTimeoutOption = 600.0,
    step_timeout: StepTimeoutOption = 300.0,
    trace: TraceOption = None,
    wire_codec: WireCodecOption = WireCodec.NONE,
    multiprocess: Annotated[bool, typer.Option("--multiprocess", hidden=True)] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove that a pipeline gives the unsplit model's tokens, greedily, for several prompts in flight at once.

    Stages come from --pipeline-dir, or load their own layers of MODEL as --num-stages or --ranges say. The unsplit
    model is MODEL, or the stages' own tensors put together when only --pipeline-dir is given.

    Exit code 0: identical. 4: not; the table shows the first token that differs. 6: a stage died or timed out.
    What follows -- goes to the engine, on both sides.
    """
    from zpptool.engines.registry import check_engine
    from zpptool.process.run_dir import private_directory
    from zpptool.supervisor.stage_processes import log_directory

    console = Console(as_json=as_json, quiet=quiet or as_json)
    if console.quiet:
        hide_information()
    check_engine(engine)

    from zpptool.config.gpu_pool import parse_gpu_ids
    from zpptool.parity.report import error_payload, payload
    from zpptool.parity.trial import run_trial
    from zpptool.parity.trial_plan import TrialOptions, plan_trial
    from zpptool.ring.timeline import check_trace_file

    whole, range_words = _model_and_ranges(pipeline_dir, model, words, ranges)
    wish = TrialOptions(
        engine=engine,
        model=whole,
        pipeline_dir=pipeline_dir,
        num_stages=num_stages,
        ranges=tuple(range_words),
        prompts=tuple(test_input or DEFAULT_PROMPTS),
        as_chat=chat,
        with_long_prompts=not no_long_prompts,
        batched=batched,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        gpu_ids=parse_gpu_ids(gpu_ids),
        base_port=base_port,
        api_port=api_port,
        engine_args=tuple(ctx.obj or ()),
        start_timeout_s=start_timeout,
        step_timeout_s=step_timeout,
        tensor_parallel_sizes=tensor_parallel_sizes(tensor_parallel_size, engine),
        trace=trace,
        wire_codec=wire_codec,
    )
    _refuse_unwritable(report, junit)
    if trace is not None:
        check_trace_file(trace)
    told_stages = num_stages or len(range_words) or None
    try:
        with private_directory() as scratch, log_directory(log_dir) as logs:
            order = plan_trial(wish, scratch, logs)
            told_stages = len(order.stages)
            began = time.monotonic()
            results = run_trial(order)
    except ZppError as fault:
        fault.beside = error_payload(engine, told_stages, fault)
        _write(fault.beside, report, junit)
        raise
    outcome = payload(order.stages, results, time.monotonic() - began)
    _write(outcome, report, junit)
    console.result(outcome, lambda out: _show(out, outcome))
    if outcome["verdict"] != Verdict.IDENTICAL:
        raise typer.Exit(ExitCode.MISMATCH)


def _model_and_ranges(
    pipeline_dir: Path | None, model: Path | None, words: list[str] | None, ranges: list[str] | None
) -> tuple[Path | None, list[str]]:
    """With --pipeline-dir the model may be left out, and the ranges are the split's own."""
    if pipeline_dir is None:
        return model_and_ranges(model, words, ranges)
    if ranges:
        raise usage_error("--pipeline-dir has its ranges; leave --ranges out", "Split again for other ranges.")
    return (model_and_ranges(model, words, None)[0] if model or words else None), []


def _refuse_unwritable(*files: Path | None) -> None:
    """Refuse to run for minutes and then have nowhere to write."""
    for file in files:
        if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
            raise usage_error(f"{file} cannot be written", "Name a file in a directory that is there.")


def _write(outcome: Mapping[str, Any], report: Path | None, junit_file: Path | None) -> None:
    from zpptool.parity.report import junit

    if report is not None:
        report.write_text(json.dumps({"schema_version": SCHEMA_VERSION, **outcome}, indent=2) + "\n", encoding="utf-8")
    if junit_file is not None:
        junit_file.write_text(junit(outcome), encoding="utf-8")


def _show(out: Console, outcome: dict[str, Any]) -> None:
    for prompt in outcome["prompts"]:
        out.line(f"prompt     {prompt['prompt']!r} ({prompt['prompt_tokens']} tokens)")
        out.line(f"  unsplit  {prompt['reference_text']!r}")
        out.line(f"  pipeline {prompt['text']!r}")
        out.line(f"  unsplit  {_ids(prompt['reference_token_ids'])}")
        out.line(f"  pipeline {_ids(prompt['token_ids'])}")
        place = prompt["first_difference"]
        out.line("  identical" if place is None else f"  DIFFERENT from token {place} on")
    stages = ", ".join(f"{start}-{end}" for start, end in (stage["layers"] for stage in outcome["stages"]))
    out.line()
    out.line(f"{outcome['num_stages']} stages ({stages}) on {outcome['engine']}, {outcome['seconds']} s")
    out.line(f"verdict: {outcome['verdict']}")


def _ids(token_ids: list[int], most: int = 16) -> str:
    more = f" ... ({len(token_ids)} tokens)" if len(token_ids) > most else ""
    return " ".join(map(str, token_ids[:most])) + more
