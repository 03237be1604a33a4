# SPDX-License-Identifier: Apache-2.0
"""From a trial that differs to the cause.

The pipeline runs once more and saves the tensors of the call that first differed, and the unsplit model runs beside it:
two starts of an engine, and one more of the pipeline if the trial did not record layers.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from zpptool.config.engine_kind import ENGINES
from zpptool.config.stage_spec import StageSpec
from zpptool.deadline import Deadline
from zpptool.errors import stage_error
from zpptool.parity.compare import PromptParity
from zpptool.parity.trial import READY_POLL_S, TrialLaunchPlan, run_pipeline
from zpptool.parity.witnessed import read_stage_records
from zpptool.process.group import ProcessGroup
from zpptool.supervisor.stage_processes import child_environment, process_fault
from zpptool.witness.compare import Difference, compare
from zpptool.witness.finding import Finding, Job, finding_at
from zpptool.witness.options import CaptureTarget, Level, WitnessOptions
from zpptool.witness.record import read_record

FINDING = "finding.json"
_logger = logging.getLogger(__name__)


def localise(
    plan: TrialLaunchPlan, results: Sequence[PromptParity], first: Difference, scratch: Path
) -> dict[str, Any]:
    """Where and why a pipeline first computes something else than the unsplit model.

    Args:
        plan: of the trial; its witness was on.
        results: the answers to all prompts.
        first: the first difference that the trial's records show.
        scratch: a private directory.

    Returns:
        the finding, as `zpptool.witness.finding.Finding` has it, with the index of the prompt; its kind is
        `not repeated` if the pipeline computed everything right this time.

    Raises:
        ZppError: (STAGE) a process ended.
    """
    prompts = [list(result.reference.prompt_token_ids) for result in results]
    if not plan.unsplit.witness.level.has_layers:
        found = _with_layers(plan, prompts, scratch)
        if found is None:
            return not_repeated(first)
        first = found
    target = CaptureTarget(first.request, first.step, first.tap.layer)
    options = WitnessOptions(Level.OPS, _directory(scratch, "tensors"), target)
    _run_again(plan, prompts, options)
    spec = plan.unsplit.with_runtime(witness=options)
    lengths = [len(result.reference.token_ids) for result in results]
    finding = _diagnose(plan, spec, Job(list(zip(prompts, lengths, strict=True)), len(plan.stages)))
    return not_repeated(first) if finding is None else msgspec.to_builtins(finding)


def not_repeated(first: Difference) -> dict[str, Any]:
    """The finding where a second run of the pipeline differs no more: the fault depends on more than the request."""
    cause = (
        "the pipeline computed the same as the unsplit model when it ran again, so the fault depends on timing,"
        " load, or hardware"
    )
    return dict(msgspec.to_builtins(finding_at(first, "not repeated", cause)))


def _with_layers(plan: TrialLaunchPlan, prompts: Sequence[list[int]], scratch: Path) -> Difference | None:
    """The first difference by layers, from another run of the pipeline; the unsplit model always records layers."""
    stages = _run_again(plan, prompts, WitnessOptions(Level.LAYERS, _directory(scratch, "layers")))
    reference = read_record(plan.unsplit.witness.record_file("reference"))
    return compare(reference, read_stage_records(stages)).first


def _run_again(plan: TrialLaunchPlan, prompts: Sequence[list[int]], options: WitnessOptions) -> tuple[StageSpec, ...]:
    """Have the pipeline answer all prompts once more, with another witness; returns the stages as they were started."""
    stages = tuple(spec.with_runtime(witness=options, trace="") for spec in plan.stages)
    _logger.info("the pipeline runs again to find the cause (%s)", options.level)
    run_pipeline(replace(plan, stages=stages), prompts)
    return stages


def _diagnose(plan: TrialLaunchPlan, spec: StageSpec, job: Job) -> Finding | None:
    """What the process that compares both calls finds; None if nothing differs.

    Raises:
        ZppError: (STAGE) it ended without an answer.
    """
    module = ENGINES[spec.engine].diagnosis
    argv = [sys.executable, "-m", module, spec.to_json(), msgspec.json.encode(job).decode()]
    _logger.info("the unsplit model runs beside it")
    answer = Path(spec.witness.directory) / FINDING
    with ProcessGroup() as group:
        child = group.start("the diagnosis", argv, child_environment(plan.env[0]), plan.log_dir / "diagnosis.log")
        deadline = Deadline(spec.start_timeout_s)
        while not child.ended:
            if not deadline.remaining_s():
                raise stage_error(f"the diagnosis has found nothing in {spec.start_timeout_s:g} s", child.tail(5))
            time.sleep(READY_POLL_S)
        if child.popen.returncode:
            raise process_fault(child)
    return msgspec.json.decode(answer.read_bytes(), type=Finding | None)


def _directory(scratch: Path, name: str) -> str:
    directory = scratch / name
    directory.mkdir()
    return str(directory)
