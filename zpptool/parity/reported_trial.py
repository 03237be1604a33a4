# SPDX-License-Identifier: Apache-2.0
"""A whole trial as `zpptool test-pipeline` runs it: checked, planned, run, and its outcome written to report files."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpptool.console import SCHEMA_VERSION
from zpptool.errors import ZppError, usage_error
from zpptool.parity.compare import PromptParity
from zpptool.parity.localise import localise
from zpptool.parity.page import page
from zpptool.parity.report import error_payload, junit, payload
from zpptool.parity.trial import TrialLaunchPlan, run_trial
from zpptool.parity.trial_plan import TrialOptions, plan_trial
from zpptool.parity.witnessed import WitnessedTrial, examine, published_record
from zpptool.process.run_dir import private_directory
from zpptool.ring.timeline import check_trace_file
from zpptool.supervisor.stage_processes import log_directory
from zpptool.witness.options import Level
from zpptool.witness.record import Record
from zpptool.witness.taps import request_key


@dataclass(frozen=True)
class ReportFiles:
    """The files that the outcome of a trial is written to.

    Attributes:
        report: as JSON; None for none.
        junit: as JUnit XML; None for none.
        page: as an HTML page; None for none.
        record: the unsplit model's hashes; None for none.
    """

    report: Path | None = None
    junit: Path | None = None
    page: Path | None = None
    record: Path | None = None

    def refuse_unwritable(self) -> None:
        """Refuse files that cannot be written, before a trial of minutes.

        Raises:
            ZppError: (USAGE) a path is a directory, or its file or directory is not writable.
        """
        for file in (self.report, self.junit, self.page, self.record):
            if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
                raise usage_error(f"{file} cannot be written", "Name a file in an existing directory.")

    def write(self, outcome: Mapping[str, Any]) -> None:
        """Write the outcome of a trial, or the error that ended it."""
        if self.report is not None:
            text = json.dumps({"schema_version": SCHEMA_VERSION, **outcome}, indent=2)
            self.report.write_text(text + "\n", encoding="utf-8")
        if self.junit is not None:
            self.junit.write_text(junit(outcome), encoding="utf-8")
        if self.page is not None:
            self.page.write_text(page(outcome), encoding="utf-8")


def _examined(
    options: TrialOptions,
    plan: TrialLaunchPlan,
    results: Sequence[PromptParity],
    scratch: Path,
    published: Record | None,
    record: Path | None,
) -> tuple[WitnessedTrial | None, dict[str, Any] | None]:
    """What the witness says, and the cause of the first difference if it is wanted and there is one."""
    if not plan.unsplit.witness.is_on:
        return None, None
    keys = {request_key(result.reference.prompt_token_ids): number for number, result in enumerate(results)}
    witness = examine(plan.unsplit, plan.stages, keys, published)
    if record is not None:
        shutil.copyfile(plan.unsplit.witness.record_file("reference"), record)
    first = witness.comparison.first
    if first is None or not options.localise:
        return witness, None
    cause = localise(plan, results, first, scratch)
    return witness, {**cause, "prompt": keys.get(cause["request"]), "request": str(cause["request"])}


def run_reported_trial(options: TrialOptions, files: ReportFiles, log_dir: Path | None) -> dict[str, Any]:
    """Run a trial and write its outcome.

    Args:
        options: what the user asks for.
        files: where the outcome goes.
        log_dir: where logs are kept; None keeps them only if the trial fails.

    Returns:
        the outcome as `report.payload` has it.

    Raises:
        ZppError: the trial did not come to a verdict; the error holds what was written to the files.
    """
    files.refuse_unwritable()
    if files.record is not None and options.witness is Level.OFF:
        raise usage_error("--witness-record needs the witness", "Use --witness layers, with --engine transformers.")
    if options.runtime.trace:
        check_trace_file(Path(options.runtime.trace))
    num_stages = options.num_stages or len(options.ranges) or None
    try:
        with private_directory() as scratch, log_directory(log_dir) as logs:
            plan = plan_trial(options, scratch, logs)
            num_stages = len(plan.stages)
            began = time.monotonic()
            published = None
            if options.witness_reference is not None:
                published = published_record(options.witness_reference, plan.unsplit.directory)
            results = run_trial(plan)
            witness, cause = _examined(options, plan, results, scratch, published, files.record)
    except ZppError as fault:
        outcome = error_payload(options.engine, num_stages, fault)
        files.write(outcome)
        raise fault.with_details(outcome) from fault
    outcome = payload(plan.stages, results, time.monotonic() - began, witness, cause)
    files.write(outcome)
    return outcome
