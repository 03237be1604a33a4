# SPDX-License-Identifier: Apache-2.0
"""The unsplit model and the parts of the embedded engine in this process, with the witness of each, as its worker and
its reference use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.calls import Step
from zpptool.engines.transformers.model import load_part
from zpptool.engines.transformers.reference import UnsplitModel
from zpptool.engines.transformers.sampling import Sampler, SamplingParams
from zpptool.engines.transformers.unsplit import load_unsplit
from zpptool.engines.transformers.witness.reference import ReferenceWitness
from zpptool.engines.transformers.witness.stage import RecordingWitness
from zpptool.witness.options import Level, WitnessOptions
from zpptool.witness.record import Record, read_record

GREEDY = SamplingParams()


def spec_of(model: Path, directory: Path, level: Level, partition: Sequence[tuple[int, int]], stage: int) -> StageSpec:
    """A stage that records to a directory."""
    spec = StageSpec(Engine.TRANSFORMERS, str(model), tuple(partition), stage, "", "")
    return spec.with_runtime(witness=WitnessOptions(level, str(directory)), device="cpu")


def run_reference(model: Path, directory: Path, level: Level, prompts: Sequence[list[int]], tokens: int) -> Record:
    """The record of the unsplit model."""
    spec = spec_of(model, directory, level, [(0, 4)], 0)
    whole = load_unsplit(model)
    unsplit = UnsplitModel(whole, ReferenceWitness(spec, whole))
    for prompt in prompts:
        assert len(list(unsplit.generate(prompt, tokens, (), GREEDY))) == tokens
    return read_record(spec.witness.record_file("reference"))


class Pipeline:
    """The parts, chained."""

    def __init__(self, model: Path, directory: Path, level: Level, partition: Sequence[tuple[int, int]]) -> None:
        self.specs = [spec_of(model, directory, level, partition, stage) for stage in range(len(partition))]
        self.parts = [load_part(spec.directory, spec.stage, spec.ranges) for spec in self.specs]
        self.witnesses = [RecordingWitness(spec, part) for spec, part in zip(self.specs, self.parts, strict=True)]

    def run(self, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
        """The answers to all prompts, a step of each in turn."""
        samplers = [Sampler(GREEDY, prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        for number in range(tokens):
            for sequence, prompt in enumerate(prompts):
                ids = answers[sequence][-1:] if number else prompt
                step = Step(sequence, ids, None if number else GREEDY)
                answers[sequence].append(self._step(step, samplers[sequence]))
        return answers

    def _step(self, step: Step, sampler: Sampler) -> int:
        values = step.token_ids
        for part, witness in zip(self.parts, self.witnesses, strict=True):
            witness.begin(step, 0, values)
            values = part.step(step.sequence, values)
            if part.is_last:
                token = sampler.choose(values).token
                witness.end(token=token)
                return token
            witness.end(values)
        raise AssertionError("the last part gives logits")

    def records(self) -> list[Record]:
        """What the parts have recorded so far."""
        return [read_record(spec.witness.record_file(f"stage-{spec.stage}")) for spec in self.specs]
