# SPDX-License-Identifier: Apache-2.0
"""Compares the records of a pipeline's stages with that of the unsplit model. Pure: records in, a comparison out.

Hashes are compared by request, step, layer and tap, never by the order in which they were recorded. They are compared
only under the same fingerprint; under another one, the sketches are, within a tolerance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from zpptool.witness.record import Computed, Record, Step
from zpptool.witness.row_hash import HASH_BYTES
from zpptool.witness.taps import INPUT_IDS, TOKEN, Tap


class Verdict(StrEnum):
    """What a comparison by witness says."""

    IDENTICAL = "identical"
    """Every bit is equal."""
    OTHER_BITS = "same tokens, other bits"
    DIFFERENT = "different"
    WITHIN_TOLERANCE = "within tolerance"
    """Bits could not be compared, because something that they depend on was not the same on both sides."""


class What(StrEnum):
    """In what way a step of a pipeline is not that of the unsplit model."""

    BITS = "other bits"
    TOKEN = "another token"
    COMPOSITION = "other tokens in the step"
    MISSING = "not computed"
    EXTRA = "computed by the pipeline alone"


@dataclass(frozen=True)
class Difference:
    """The first difference of one request.

    Attributes:
        what: its kind.
        stage: the stage that recorded it.
        tap: where in the model.
        request: its name.
        step: the step's number in the request.
        position: of the first row that differs.
        rows: how many rows of this tap differ in this step.
        expected: the hash of that row, or the token, of the unsplit model; None where there is none.
        got: of the pipeline.
    """

    what: What
    stage: int
    tap: Tap
    request: int
    step: int
    position: int
    rows: int = 1
    expected: int | None = None
    got: int | None = None


@dataclass
class Cell:
    """What was compared of one layer in one step of all requests: rows in all, and those that differ."""

    rows: int = 0
    differing: int = 0


@dataclass
class Comparison:
    """The outcome.

    Attributes:
        firsts: the first difference of each request that has one; the first to be computed comes first.
        rows: how many hashes were compared.
        differing: how many of them differ.
        cells: by layer and step.
        foreign: for each stage whose bits were not compared, what is not the same as in the reference.
        sketches: how many sketches were compared in their place.
        furthest: the greatest distance of two sketches, relative to their length.
        tolerance: what that may be.
        tokens_differ: whether any chosen token differs.
    """

    firsts: list[Difference] = field(default_factory=list)
    rows: int = 0
    differing: int = 0
    cells: dict[tuple[int, int], Cell] = field(default_factory=lambda: defaultdict(Cell))
    foreign: dict[int, list[str]] = field(default_factory=dict)
    sketches: int = 0
    furthest: float = 0.0
    tolerance: float = 0.0
    tokens_differ: bool = False

    @property
    def first(self) -> Difference | None:
        """The earliest difference: by step, then along the pipeline."""
        return self.firsts[0] if self.firsts else None

    @property
    def verdict(self) -> Verdict:
        """`identical` only if every bit could be compared and is equal, and at least one was."""
        if self.tokens_differ or any(first.what is not What.BITS for first in self.firsts):
            return Verdict.DIFFERENT
        if self.firsts:
            return Verdict.OTHER_BITS
        if self.foreign:
            near = self.sketches and self.furthest <= self.tolerance
            return Verdict.WITHIN_TOLERANCE if near else Verdict.DIFFERENT
        return Verdict.IDENTICAL if self.rows else Verdict.DIFFERENT


_Key = tuple[int, int]
_Found = tuple[int, Difference]
"""A difference, and the place of its tap among those of the step."""
_STEP = "step"
"""The name of the tap of a step that one side lacks."""


def compare(reference: Record, stages: Sequence[Record]) -> Comparison:
    """Compare a pipeline with the unsplit model.

    Args:
        reference: of the unsplit model.
        stages: of the pipeline, in the order of the stages.
    """
    outcome = Comparison(tolerance=reference.header.fingerprint.tolerance)
    expected = {(each.step.request, each.step.number): each for each in reference.steps}
    earliest: dict[int, tuple[_Key, int, Difference]] = {}
    for record in stages:
        foreign = reference.header.fingerprint.differences(record.header.fingerprint)
        if foreign:
            outcome.foreign[record.header.stage] = foreign
        for place, found in _of_stage(outcome, expected, record, with_bits=not foreign):
            at = ((found.step, found.stage), place, found)
            outcome.tokens_differ |= found.what is What.TOKEN
            if found.request not in earliest or at[:2] < earliest[found.request][:2]:
                earliest[found.request] = at
    outcome.firsts = [found for *_place, found in sorted(earliest.values(), key=lambda at: at[:2])]
    return outcome


def _of_stage(
    outcome: Comparison, expected: Mapping[_Key, Computed], record: Record, *, with_bits: bool
) -> Iterator[_Found]:
    """All differences of one stage, at most one for each tap of a step."""
    stage = record.header.stage
    done: set[_Key] = set()
    for got in record.steps:
        key = (got.step.request, got.step.number)
        done.add(key)
        if key in expected:
            yield from _of_step(outcome, stage, expected[key], got, with_bits=with_bits)
        else:
            yield _whole_step(What.EXTRA, stage, record.layers.start, got.step)
    for key in expected.keys() - done:
        yield _whole_step(What.MISSING, stage, record.layers.start, expected[key].step)


def _whole_step(what: What, stage: int, layer: int, step: Step) -> _Found:
    return -1, Difference(what, stage, Tap(layer, _STEP), step.request, step.number, step.start)


def _of_step(
    outcome: Comparison, stage: int, expected: Computed, got: Computed, *, with_bits: bool
) -> Iterator[_Found]:
    step, wanted = got.step, expected.step
    if (step.start, step.tokens) != (wanted.start, wanted.tokens):
        yield _whole_step(What.COMPOSITION, stage, got.layout.taps[0].layer if got.layout.taps else 0, step)
        return
    if with_bits:
        yield from _of_hashes(outcome, stage, expected, got)
    else:
        _of_sketches(outcome, expected, got)
    if -1 not in (step.token, wanted.token) and step.token != wanted.token:
        tap = Tap(max((tap.layer for tap in got.layout.taps), default=0), TOKEN, False)
        last = step.start + step.tokens - 1
        difference = Difference(What.TOKEN, stage, tap, step.request, step.number, last, 1, wanted.token, step.token)
        yield len(got.layout.taps), difference


def _of_hashes(outcome: Comparison, stage: int, expected: Computed, got: Computed) -> Iterator[_Found]:
    theirs = expected.hashes()
    for place, (tap, ours) in enumerate(got.hashes().items()):
        wanted = theirs.get(tap.reference)
        if wanted is None:
            continue
        rows = [row for row in range(0, len(ours), HASH_BYTES) if ours[row : row + 8] != wanted[row : row + 8]]
        cell = outcome.cells[tap.layer, got.step.number]
        for counts in (outcome, cell):
            counts.rows += len(ours) // HASH_BYTES
            counts.differing += len(rows)
        if rows:
            first = rows[0]
            row = first // HASH_BYTES if tap.by_row else got.step.tokens - 1
            yield place, Difference(
                What.TOKEN if tap.name == INPUT_IDS else What.BITS,
                stage, tap, got.step.request, got.step.number, got.step.start + row, len(rows),
                _number(wanted[first : first + 8]), _number(ours[first : first + 8]),
            )  # fmt: skip


def _of_sketches(outcome: Comparison, expected: Computed, got: Computed) -> None:
    theirs = expected.sketches()
    for tap, ours in got.sketches().items():
        wanted = theirs.get(tap.reference)
        if wanted is not None:
            outcome.sketches += 1
            outcome.furthest = max(outcome.furthest, _distance(wanted, ours))


def _distance(wanted: Sequence[float], ours: Sequence[float]) -> float:
    """How far two sketches are apart, relative to the length of the first; infinite where a number is not finite."""
    apart, length = math.dist(wanted, ours), math.hypot(*wanted)
    if not math.isfinite(apart) or not math.isfinite(length):
        return 0.0 if list(wanted) == list(ours) else math.inf
    return apart / length if length else (math.inf if apart else 0.0)


def _number(content: memoryview) -> int:
    return int.from_bytes(content, "little")
