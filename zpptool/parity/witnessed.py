# SPDX-License-Identifier: Apache-2.0
"""What the witness says of a trial: the records of the stages against that of the unsplit model, and the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import invalid_error, stage_error, usage_error
from zpptool.witness.compare import Comparison, Difference, Verdict, compare
from zpptool.witness.record import REFERENCE, Record, read_record

MOST_NAMED = 20
"""How many requests and weights are listed in full."""
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""safetensors' names of the dtypes that a stage may compute in, and torch's."""


@dataclass(frozen=True)
class WitnessedTrial:
    """What the witness of one trial says.

    Attributes:
        level: what was recorded.
        comparison: of all stages with the unsplit model.
        wrong_weights: the parameters that are in a stage's memory otherwise than in the unsplit model's, or than the
            manifest says: stage, name, and against what.
        requests: the index of each request's prompt, by the request's name.
        published: the comparison with a record that was made elsewhere; None for none.
    """

    level: str
    comparison: Comparison
    wrong_weights: list[tuple[int, str, str]] = field(default_factory=list)
    requests: Mapping[int, int] = field(default_factory=dict)
    published: Comparison | None = None

    @property
    def verdict(self) -> Verdict:
        """That of the comparison with the unsplit model; the other one's if that is worse; `different` if a weight is
        wrong."""
        if self.wrong_weights:
            return Verdict.DIFFERENT
        own = self.comparison.verdict
        if own is Verdict.IDENTICAL and self.published is not None:
            elsewhere = self.published.verdict
            return own if elsewhere is Verdict.WITHIN_TOLERANCE else elsewhere
        return own

    def as_json(self) -> dict[str, Any]:
        """What the report holds."""
        outcome = self.comparison
        return {
            "verdict": self.verdict,
            "level": self.level,
            "hashes": outcome.rows,
            "differing": outcome.differing,
            "first_differences": [self._difference(each) for each in outcome.firsts[:MOST_NAMED]],
            "not_compared": {f"stage {stage}": names for stage, names in outcome.foreign.items()},
            **({"reference": self._of_published(self.published)} if self.published is not None else {}),
            "sketches": outcome.sketches,
            "furthest_sketch": outcome.furthest if outcome.sketches else None,
            "tolerance": outcome.tolerance,
            "wrong_weights": [
                {"stage": stage, "name": name, "against": against}
                for stage, name, against in self.wrong_weights[:MOST_NAMED]
            ],
            "map": [
                {"layer": layer, "step": step, "hashes": cell.rows, "differing": cell.differing}
                for (layer, step), cell in sorted(outcome.cells.items())
            ],
        }

    def _of_published(self, outcome: Comparison) -> dict[str, Any]:
        return {
            "verdict": outcome.verdict,
            "hashes": outcome.rows,
            "differing": outcome.differing,
            "not_compared": {f"stage {stage}": names for stage, names in outcome.foreign.items()},
            "sketches": outcome.sketches,
            "furthest_sketch": outcome.furthest if outcome.sketches else None,
            "tolerance": outcome.tolerance,
            "first_differences": [self._difference(each) for each in outcome.firsts[:MOST_NAMED]],
        }

    def _difference(self, difference: Difference) -> dict[str, Any]:
        return {
            "what": difference.what,
            "stage": difference.stage,
            "layer": difference.tap.layer,
            "tap": difference.tap.name,
            "prompt": self.requests.get(difference.request),
            "step": difference.step,
            "position": difference.position,
            "rows": difference.rows,
            "expected": _shown(difference.expected),
            "got": _shown(difference.got),
        }


def read_records(unsplit: StageSpec, stages: Sequence[StageSpec]) -> tuple[Record, list[Record]]:
    """The records that a trial has left.

    Raises:
        ZppError: (STAGE) a process has left none.
    """
    try:
        reference = read_record(unsplit.witness.record_file("reference"))
        return reference, read_stage_records(stages)
    except FileNotFoundError as cause:
        raise stage_error(f"a process has recorded nothing: there is no {cause.filename}") from cause


def read_stage_records(stages: Sequence[StageSpec]) -> list[Record]:
    """The stages' records.

    Raises:
        FileNotFoundError: a stage has left none.
    """
    return [read_record(spec.witness.record_file(f"stage-{spec.stage}")) for spec in stages]


def examine(
    unsplit: StageSpec, stages: Sequence[StageSpec], requests: Mapping[int, int], published: Record | None = None
) -> WitnessedTrial:
    """Compare what a trial has recorded.

    Args:
        unsplit, stages: as they were started, with the witness on.
        requests: the index of each request's prompt, by the request's name.
        published: a record of the unsplit model that was made elsewhere; None for none.

    Raises:
        ZppError: (STAGE) a process has left no record; (INVALID) one is damaged.
    """
    reference, records = read_records(unsplit, stages)
    directories = [spec.directory for spec in stages]
    return WitnessedTrial(
        str(stages[0].witness.level),
        compare(reference, records),
        wrong_weights(reference, records, directories),
        requests,
        compare(published, records) if published is not None else None,
    )


def published_record(file: Path, model: Path) -> Record:
    """A record of the unsplit model that was made elsewhere.

    Args:
        file: the record.
        model: the directory of the model that it has to be of.

    Raises:
        ZppError: (USAGE) it cannot be read; (INVALID) it is no record, or not of this model, or not of the whole.
    """
    try:
        record = read_record(file)
    except OSError as cause:
        raise usage_error(f"{file} cannot be read: {cause.strerror}") from cause
    if record.header.stage != REFERENCE:
        raise invalid_error(f"{file} is the record of stage {record.header.stage}, not of the unsplit model")
    if record.header.model != model_digest(model):
        raise invalid_error(f"{file} is not a record of the model in {model}", "Compare the same checkpoint.")
    return record


def wrong_weights(
    reference: Record, records: Sequence[Record], directories: Sequence[Path]
) -> list[tuple[int, str, str]]:
    """The parameters of the stages that are not what they should be: stage, name, and against what that was found.

    A parameter is compared with the unsplit model's of the same name, and with the manifest where it has the name, the
    dtype and the shape that it has in the checkpoint; others are conversions, which only the unsplit model shows.

    Args:
        reference: of the unsplit model.
        records: of the stages.
        directories: what each stage was loaded from.
    """
    found = []
    for record, directory in zip(records, directories, strict=True):
        stored = _stored_digests(directory)
        for name, weight in record.weights.items():
            whole = reference.weights.get(name)
            described = (name, weight.dtype, weight.shape)
            if whole is not None and (whole.dtype, whole.shape) == described[1:] and whole.blake3 != weight.blake3:
                found.append((record.header.stage, name, "the unsplit model"))
            elif stored.get(described, weight.blake3) != weight.blake3:
                found.append((record.header.stage, name, "the manifest"))
    return found


def _stored_digests(directory: Path) -> dict[tuple[str, str, tuple[int, ...]], str]:
    """The digests in a stage's manifest, by name, dtype and shape; none for a full checkpoint."""
    if not (directory / STAGE_FILE).is_file():
        return {}
    return {
        (entry.name, _DTYPES.get(entry.dtype, entry.dtype), tuple(entry.shape)): entry.blake3
        for entry in load_manifest(directory).tensors
        if entry.blake3
    }


def _shown(number: int | None) -> str | None:
    """A hash or token as text: JSON's numbers do not hold 64 bits everywhere."""
    return None if number is None else str(number)
