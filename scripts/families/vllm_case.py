# SPDX-License-Identifier: Apache-2.0
"""One model class on vLLM: a tiny model is made, saved and split in two, and run unsplit and as a pipeline; the tokens
must be equal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import PreTrainedModel

from families.case import partition_of, plain, shortened
from families.forked import Fork, Forks, alone, wait_for
from families.tiny import VLLM, tiny_config
from families.vllm_outcome import (
    DIFFERENT,
    FAILED,
    IDENTICAL,
    NO_PIPELINE,
    NOT_BUILT,
    NOT_ON_VLLM,
    REFUSED,
    VllmOutcome,
)
from families.vllm_run import examine, run_head, run_stage, run_unsplit
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.structure import infer_structure
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.config.endpoints import plan_endpoints
from zpptool.config.engine_kind import SINGLE_SEQUENCE_SCHEDULER, Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.faulty_classes import FAULTY_CLASS
from zpptool.engines.vllm.stage.loader import NO_CLASS_OF_ITS_OWN
from zpptool.errors import ZppError

STAGES = 2
ARGUMENTS = (
    "--enforce-eager", "--skip-tokenizer-init", "--max-model-len", "128", "--max-num-batched-tokens", "64",
    "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(64 << 20), "--no-enable-prefix-caching",
    "--language-model-only",
)  # fmt: skip
"""The engine arguments of both sides. A tiny model has no processors, so towers are not built and prompts are text."""
ALONE_IN_A_STEP = ("--scheduler-cls", SINGLE_SEQUENCE_SCHEDULER)
FLOAT32, BFLOAT16 = "float32", "bfloat16"
_LOG_LINES = 400


def try_on_vllm(
    name: str, model_class: type[PreTrainedModel], config_class: type[Any], work: Path, limit_s: int
) -> VllmOutcome:
    """Make, split and run one class in an empty directory `work`. Each of its processes has `limit_s` seconds.

    It runs in float32, or in bfloat16 where vLLM requires that (as its linear attention on a CPU does).
    """
    outcome = _try_in(FLOAT32, name, model_class, config_class, work / FLOAT32, limit_s)
    if outcome.verdict == NOT_ON_VLLM and "BF16" in outcome.reason:
        outcome = _try_in(BFLOAT16, name, model_class, config_class, work / BFLOAT16, limit_s)
    return outcome


def _try_in(
    dtype: str, name: str, model_class: type[PreTrainedModel], config_class: type[Any], work: Path, limit_s: int
) -> VllmOutcome:
    work.mkdir(mode=0o700)
    model, output = work / "model", work / "output.json"
    try:
        build = _in_a_child(work, "build", partial(_build, model_class, config_class, work), output, limit_s)
    except _Failed as failure:
        return VllmOutcome(name, NOT_BUILT, reason=failure.reason)
    if "refused" in build:
        return VllmOutcome(name, REFUSED, reason=build["refused"])
    partition = tuple((start, end) for start, end in build["partition"])
    unsplit = _spec(dtype, model, ((0, partition[-1][1]),), work)
    try:
        known = _in_a_child(work, "examine", partial(examine, unsplit, output), output, limit_s)
        expected = _in_a_child(work, "unsplit", partial(run_unsplit, unsplit, output), output, limit_s)
    except _Failed as failure:
        return VllmOutcome(name, NOT_ON_VLLM, reason=failure.reason)
    runs_as = known["class"] if known["class"] != name else ""
    if not known["pipeline"]:
        return VllmOutcome(name, NO_PIPELINE, runs_as)
    try:
        got = _run_pipeline(dtype, work, partition, output, limit_s)
    except _Failed as failure:
        is_refused = NO_CLASS_OF_ITS_OWN in failure.reason or FAULTY_CLASS in failure.reason
        return VllmOutcome(name, REFUSED if is_refused else FAILED, runs_as, failure.reason)
    if got != expected:
        return VllmOutcome(name, DIFFERENT, runs_as, f"{got} for {expected}")
    return VllmOutcome(name, IDENTICAL, runs_as)


class _Failed(Exception):
    """A process of the trial has failed; `reason` is its error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _build(model_class: type[PreTrainedModel], config_class: type[Any], work: Path) -> None:
    """Save the tiny model, split it, validate the split; write the partition, or zpptool's refusal."""
    torch.manual_seed(0)
    model = model_class(tiny_config(config_class, VLLM)).float().eval()
    model.save_pretrained(work / "model")
    try:
        partition = partition_of(infer_structure(read_index(work / "model")), STAGES)
        split_checkpoint(work / "model", work / "split", ranges=[str(owned) for owned in partition])
        faults = verify_split(find_target(work / "split", work / "model")).faults
        result: dict[str, Any] = {"partition": partition} if not faults else {"refused": faults[0].message}
    except ZppError as refusal:
        result = {"refused": plain(refusal, work)}
    (work / "output.json").write_text(json.dumps(result))


def _run_pipeline(dtype: str, work: Path, partition: tuple[tuple[int, int], ...], output: Path, limit_s: int) -> Any:
    """The answers of the pipeline: one worker for each stage, and the head, over their own sockets."""
    output.unlink(missing_ok=True)
    specs = [
        msgspec.structs.replace(
            _spec(dtype, work / "split" / f"stage_{link.stage}", partition, work, ALONE_IN_A_STEP),
            stage=link.stage, bind=link.bind, connect=link.connect,
            runtime=RuntimeOptions(start_timeout_s=limit_s, step_timeout_s=limit_s),
        )
        for link in plan_endpoints(len(partition), transport="ipc", ipc_dir=work)
    ]  # fmt: skip
    with Forks(work) as forks:
        workers = [forks.start(f"stage-{spec.stage}", partial(run_stage, spec)) for spec in specs]
        head = forks.start("head", alone(partial(run_head, specs[0], output)))
        _finish([head, *workers], limit_s)
    return json.loads(output.read_text())


def _in_a_child(work: Path, name: str, body: Callable[[], None], output: Path, limit_s: int) -> Any:
    """Run `body` in a process of its own; returns what it has written to `output`."""
    output.unlink(missing_ok=True)
    with Forks(work) as forks:
        _finish([forks.start(name, alone(body))], limit_s)
    return json.loads(output.read_text())


def _finish(forks: list[Fork], limit_s: int) -> None:
    try:
        failed = wait_for(forks, time.monotonic() + limit_s)
    except TimeoutError:
        raise _Failed(f"not done within {limit_s} s") from None
    if failed is not None:
        logs = [*(fork for fork in forks if fork is not failed), failed]
        error = error_in("\n".join(fork.tail(_LOG_LINES) for fork in logs)) or "it ended without an error"
        raise _Failed(shortened(error.replace(f"{failed.log.parent}/", "")))


def error_in(log: str) -> str:
    """The line of a process's log that explains why it ended: a stage's error for the call that failed, or the last
    exception, or the error with which zpptool exits."""
    lines = log.splitlines()
    failed_call = re.compile(r"zpptool stage \d+: (?:error: )?(\w+ failed: .*)")
    calls = [match[1] for line in lines if (match := failed_call.search(line))]
    errors = [index for index, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    missing = re.findall(r"ModuleNotFoundError: .*", log)
    if calls or missing:
        return [*calls, *missing][0]
    if errors:
        last = lines[errors[-1]]
        kind, _, text = last.partition(": ")
        inner = lines[errors[-1] + 1 :][:1] if "validation error" in last else []
        return inner[0].strip().partition(" [type=")[0] if inner else f"{kind.rpartition('.')[2]}: {text}"
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")


def _spec(
    dtype: str, model: Path, partition: tuple[tuple[int, int], ...], work: Path, arguments: tuple[str, ...] = ()
) -> StageSpec:
    return StageSpec(
        engine=Engine.VLLM, model=str(model), partition=partition, stage=0, bind="", connect="",
        local=f"ipc://{work / 'head'}", dtype=dtype, engine_args=(*ARGUMENTS, *arguments),
    )  # fmt: skip
