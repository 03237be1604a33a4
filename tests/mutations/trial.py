# SPDX-License-Identifier: Apache-2.0
"""Injects faults into one running pipeline, one after the other, and scores what the witness says of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from tests.mutations.mutation import CUTS, Mutation
from tests.mutations.switch import applied_file, mutable_environment, set_control
from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.unsplit import load_unsplit
from zpptool.engines.transformers.witness.diagnosis import Diagnosis
from zpptool.engines.witness.capture import load_capture
from zpptool.errors import ZppError
from zpptool.net.openai_client import ApiClient
from zpptool.parity.trial_plan import TrialOptions, plan_trial
from zpptool.process.group import ProcessGroup
from zpptool.supervisor.stage_processes import raise_if_ended, start_stage
from zpptool.witness.compare import Comparison, compare
from zpptool.witness.finding import Finding
from zpptool.witness.options import CaptureTarget, Level, WitnessOptions
from zpptool.witness.record import Record, read_record

PROMPTS = ([5, 6, 7, 8, 9, 10, 11, 12], [40, 41, 42, 43, 44])
TOKENS = 6
READY_S = 200
ATTEMPTS = 6


@dataclass(frozen=True)
class Score:
    """What was said of one fault.

    Attributes:
        name, group, kind: of the mutation.
        found: whether any difference was seen.
        stage, layer, tap, cause: whether what was named is right.
        parity: whether any token differs, which is all that token parity sees.
        said: where the witness saw it first, and what it said.
    """

    name: str
    group: str
    kind: str
    found: bool
    stage: bool = False
    layer: bool = False
    tap: bool = False
    cause: bool = False
    parity: bool = False
    said: str = ""

    @property
    def right(self) -> bool:
        """Whether all that was named is right."""
        return self.found and self.stage and self.layer and self.tap and self.cause


class MutatedPipeline:
    """A running pipeline with the witness on, into which faults are injected.

    Args:
        specs: of the stages.
        unsplit: of the unsplit model.
        client: of the pipeline.
        control: the control file.
    """

    def __init__(self, specs: Sequence[StageSpec], unsplit: StageSpec, client: ApiClient, control: Path) -> None:
        self._specs = specs
        self._unsplit = unsplit
        self._client = client
        self._control = control
        self._whole = load_unsplit(unsplit.directory)
        torch.set_num_threads(1)
        self.reference = self._diagnosed(None)[1]
        steps = [each.step for each in self.reference.steps]
        self._tokens = [step.token for step in steps]

    def clean(self) -> Comparison:
        """A run without any fault."""
        set_control(self._control)
        return compare(self.reference, self._run()[0])

    def score(self, mutation: Mutation) -> Score:
        """Inject a fault and see what is said of it."""
        try:
            return self._scored(mutation)
        finally:
            set_control(self._control)

    def _scored(self, mutation: Mutation) -> Score:
        score = Score(mutation.name, mutation.group, mutation.kind, False)
        outcome, tokens = self._applied(mutation, None)
        score = replace(score, parity=tokens != self._tokens)
        finding: Finding | None = None
        first = outcome.first
        for _attempt in range(2):
            if first is None:
                return replace(score, said="nothing")
            target = CaptureTarget(first.request, first.step, first.tap.layer)
            self._applied(mutation, target)
            finding, _record = self._diagnosed(target)
            if finding is None:
                return replace(score, found=True, said="not repeated")
            if finding.kind != "unknown":
                break
            first = compare(self.reference, self._last).first
        assert finding is not None
        taps = mutation.taps
        return replace(
            score,
            found=True,
            stage=finding.stage == max(mutation.stage, 0),
            layer=finding.layer == mutation.layer,
            tap=any(finding.tap.startswith(tap[:-1]) if tap.endswith("*") else finding.tap == tap for tap in taps),
            cause=finding.kind == mutation.cause,
            said=f"stage {finding.stage}, layer {finding.layer}, {finding.tap}: {finding.kind}: {finding.cause}",
        )

    def _applied(self, mutation: Mutation, target: CaptureTarget | None) -> tuple[Comparison, list[int]]:
        """A run in which the fault has changed something: some need two requests at the same time."""
        for _attempt in range(ATTEMPTS):
            for spec in self._specs:
                spec.witness.capture_file(f"stage-{spec.stage}").unlink(missing_ok=True)
            set_control(self._control, mutation.name, msgspec.to_builtins(target) if target else None)
            self._last, tokens = self._run()
            if applied_file(self._control).exists():
                return compare(self.reference, self._last), tokens
        raise AssertionError(f"{mutation.name} has changed nothing in {ATTEMPTS} runs")

    def _run(self) -> tuple[list[Record], list[int]]:
        """What the stages record while both prompts are answered, and the tokens."""
        before = [len(self._read(spec).steps) for spec in self._specs]
        tokens: list[int] = []
        with suppress(ZppError):  # a fault may make a stage refuse a step, and the steps before it are compared
            answers = self._client.complete_all(PROMPTS, TOKENS, {"ignore_eos": True}, at_once=len(PROMPTS))
            tokens = [token for answer in answers for token in answer.token_ids]
        records = []
        for spec, count in zip(self._specs, before, strict=True):
            record = self._read(spec)
            records.append(Record(record.header, record.weights, record.steps[count:]))
        return records, tokens

    def _read(self, spec: StageSpec) -> Record:
        return read_record(spec.witness.record_file(f"stage-{spec.stage}"))

    def _diagnosed(self, target: CaptureTarget | None) -> tuple[Finding | None, Record]:
        """What the unsplit model's run beside the last run of the pipeline shows, and its record."""
        directory = self._unsplit.witness.directory
        spec = self._unsplit.with_runtime(witness=WitnessOptions(Level.OPS, directory, target))
        spec.witness.capture_file("reference").unlink(missing_ok=True)
        diagnosis = Diagnosis(spec, copy.deepcopy(self._whole))
        diagnosis.run([(list(prompt), TOKENS) for prompt in PROMPTS])
        record = read_record(spec.witness.record_file("reference"))
        if target is None:
            return None, record
        files = [spec.witness.capture_file(f"stage-{stage}") for stage in range(len(self._specs))]
        captures = [load_capture(file) if file.is_file() else None for file in files]
        return diagnosis.finding(self._last, captures), record


@contextmanager
def mutated_pipeline(model: Path, scratch: Path) -> Iterator[MutatedPipeline]:
    """Start three stages of a small model, into which faults can be injected."""
    control = scratch / "control.json"
    set_control(control)
    (scratch / "logs").mkdir()
    options = TrialOptions(
        engine=Engine.TRANSFORMERS, model=model, pipeline_dir=None, num_stages=None,
        ranges=tuple(f"{start}-{end}" for start, end in CUTS), prompts=("x",), as_chat=False, with_long_prompts=False,
        batched=False, max_new_tokens=TOKENS, dtype="auto", gpu_ids=(), base_port=None, api_port=None, engine_args=(),
        runtime=RuntimeOptions(device="cpu"), witness=Level.OPS,
    )  # fmt: skip
    plan = plan_trial(options, scratch, scratch / "logs")
    with ProcessGroup() as group:
        for spec, env in zip(plan.stages, plan.env, strict=True):
            changed = {**env, **mutable_environment(control), "OMP_NUM_THREADS": "1"}
            start_stage(group, spec, changed, scratch / "logs")
        head = plan.stages[0]
        with ApiClient(f"http://{head.api_host}:{head.api_port}", 60) as client:
            deadline = time.monotonic() + READY_S
            while not client.is_ready():
                raise_if_ended(group)
                assert time.monotonic() < deadline, "the pipeline has not become ready"
                time.sleep(0.1)
            yield MutatedPipeline(plan.stages, plan.unsplit, client, control)
