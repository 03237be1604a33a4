# SPDX-License-Identifier: Apache-2.0
"""The process that finds the cause of a difference.

Started as `python -m zpptool.engines.transformers.witness.diagnosis SPEC JOB`. It runs the unsplit model over the
trial's prompts, level `ops`, keeps the tensors of one call, and compares them with what the stages have recorded and
saved of the same call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.engines.transformers.calls import device_of
from zpptool.engines.transformers.surgery import decoder_layers
from zpptool.engines.transformers.unsplit import generate_choices, load_unsplit
from zpptool.engines.transformers.witness.cause import Kind, Origins, cause_of, state_in_words
from zpptool.engines.transformers.witness.reference import ReferenceWitness
from zpptool.engines.transformers.witness.replay import KeptCall, Transplant
from zpptool.engines.witness.capture import Capture, load_capture
from zpptool.engines.witness.change import first_element
from zpptool.errors import usage_error
from zpptool.process.child import end_on_sigterm, run_child
from zpptool.witness.compare import Difference, compare
from zpptool.witness.finding import Finding, Job, finding_at
from zpptool.witness.options import CaptureTarget
from zpptool.witness.record import Record, read_record
from zpptool.witness.row_hash import HASH_BYTES
from zpptool.witness.taps import STATE_AFTER, WIRE_IN, WIRE_OUT

FINDING = "finding.json"
"""The file, beside the records, that the answer is written to."""


class Diagnosis:
    """Finds the causes of differences in one layer and step, by one run of the unsplit model.

    Args:
        spec: of the unsplit model; its witness has level `ops` and the captured call.
        model: the unsplit model.
    """

    def __init__(self, spec: StageSpec, model: PreTrainedModel) -> None:
        self._options = spec.witness
        self._model = model
        self._witness = ReferenceWitness(spec, model)
        layers = decoder_layers(model)[1]
        target = self._options.capture or CaptureTarget(0, 0, 0)
        is_layer = 0 <= target.layer < len(layers)
        self._call = KeptCall(layers[target.layer], target.layer, self._witness.recorder) if is_layer else None

    def run(self, prompts: Sequence[tuple[list[int], int]]) -> None:
        """Compute the prompts, and keep the captured call."""
        for prompt, tokens in prompts:
            self._witness.watch(partial(generate_choices, self._model, prompt, tokens), prompt)

    def finding(self, stages: Sequence[Record], captures: Sequence[Capture | None]) -> Finding | None:
        """Where the stages first differ in the captured request, and why.

        Args:
            stages: what each stage has recorded, level `ops`.
            captures: what each stage has saved of the call; None where it has no part in it.

        Returns:
            None if they do not differ now.
        """
        reference = read_record(self._options.record_file("reference"))
        target = self._options.capture
        assert target is not None
        outcome = compare(only(reference, target.request), [only(stage, target.request) for stage in stages])
        first = outcome.first
        if first is None:
            return None
        theirs = self._capture()
        ours = captures[first.stage]
        is_captured = (first.step, first.tap.layer) == (target.step, target.layer)
        if theirs is not None and ours is not None and not is_captured and first.tap.name.startswith(STATE_AFTER):
            words = state_in_words(theirs, ours, target.step)
            return _finding(first, Kind.STATE, words, "", None, self._transplants(theirs, ours))
        if theirs is None or ours is None or not is_captured:
            return _finding(first, Kind.UNKNOWN, "the tensors of this call were not saved", "", None, ())
        weights = dict(self._model.state_dict())
        kind, words, tensor = cause_of(first, theirs, ours, origins_of(reference), weights)
        element = _element(first, tensor, theirs, ours)
        return _finding(first, kind, words, tensor, element, self._transplants(theirs, ours))

    def _transplants(self, theirs: Capture, ours: Capture) -> list[Transplant]:
        return self._call.transplants(theirs, ours) if self._call is not None else []

    def _capture(self) -> Capture | None:
        file = self._options.capture_file("reference")
        return load_capture(file) if file.is_file() else None


def only(record: Record, request: int) -> Record:
    """The record of one request."""
    steps = [each for each in record.steps if each.step.request == request]
    return Record(record.header, record.weights, steps)


def origins_of(reference: Record) -> Origins:
    """The place of each row of the unsplit model's computation, by its hash; the first place where several have it."""
    origins: dict[int, tuple[int, int, object]] = {}
    for each in reference.steps:
        for tap, hashes in each.hashes().items():
            if tap.by_row:
                for row in range(each.step.tokens):
                    number = int.from_bytes(hashes[row * HASH_BYTES : (row + 1) * HASH_BYTES], "little")
                    origins.setdefault(number, (each.step.request, each.step.start + row, tap))
    return origins  # type: ignore[return-value]


def _element(first: Difference, tensor: str, theirs: Capture, ours: Capture) -> dict[str, object] | None:
    """The first element that differs, of the weight that is meant, or else of the tap."""
    if tensor:
        pair = (theirs.weights.get(tensor), ours.weights.get(tensor))
    else:
        name = "out" if first.tap.name in (WIRE_IN, WIRE_OUT) else first.tap.name
        pair = (theirs.taps.get(name), ours.taps.get(first.tap.name))
    if pair[0] is None or pair[1] is None:
        return None
    element = first_element(*pair)
    return msgspec.to_builtins(element) if element is not None else None


def _finding(
    first: Difference, kind: Kind, words: str, tensor: str, element: dict[str, object] | None,
    transplants: Sequence[Transplant],
) -> Finding:  # fmt: skip
    shown = tuple(msgspec.to_builtins(each) for each in transplants)
    return finding_at(first, str(kind), words, tensor=tensor, element=element, transplants=shown)


def main() -> None:
    """Do the job that the command line names, and write the finding; `null` if nothing differs."""
    spec = spec_from_argv(sys.argv)
    try:
        job = msgspec.json.decode(sys.argv[2], type=Job)
    except (IndexError, msgspec.DecodeError) as cause:
        raise usage_error(f"this module is started by zpptool with a job as its second argument ({cause})") from cause
    end_on_sigterm()
    diagnosis = Diagnosis(spec, load_unsplit(spec.directory, dtype=spec.dtype, device=device_of(spec)))
    diagnosis.run(job.prompts)
    names = [f"stage-{stage}" for stage in range(job.stages)]
    files = [spec.witness.capture_file(name) for name in names]
    found = diagnosis.finding(
        [read_record(spec.witness.record_file(name)) for name in names],
        [load_capture(file) if file.is_file() else None for file in files],
    )
    (Path(spec.witness.directory) / FINDING).write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    run_child("diagnosis", main)
