# SPDX-License-Identifier: Apache-2.0
"""A comparison names the first difference of each request, and never calls identical what it could not compare."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import CUT, LAYERS, PROMPTS, STEPS, pipeline, record, taps_of, true_hash, with_step

from zpptool.witness.compare import Verdict, What, compare
from zpptool.witness.record import REFERENCE, Record
from zpptool.witness.taps import LAYER_IN, LAYER_OUT, TOKEN, WIRE_IN, WIRE_OUT, Tap, request_key

places = st.tuples(st.sampled_from(sorted(PROMPTS)), st.integers(0, STEPS - 1), st.sampled_from([0, 1]))


def test_equal_records_are_identical() -> None:
    outcome = compare(record(REFERENCE), pipeline())
    assert outcome.verdict is Verdict.IDENTICAL
    assert outcome.first is None
    assert outcome.rows > 50
    assert {layer for layer, _step in outcome.cells} == {-1, *range(LAYERS + 1)}


@settings(max_examples=50)
@given(places, st.data())
def test_any_changed_row_is_found_where_it_is(place: tuple[int, int, int], data: st.DataObject) -> None:
    request, step, stage = place
    taps = taps_of(stage)
    tap = data.draw(st.sampled_from(taps))
    row = data.draw(st.integers(0, (PROMPTS[request] if step == 0 else 1) - 1)) if tap.by_row else 0
    outcome = compare(record(REFERENCE), pipeline({(request, step, tap, row): 5}))
    assert outcome.verdict is Verdict.OTHER_BITS
    first = outcome.first
    assert first is not None
    assert (first.stage, first.tap, first.request, first.step, first.rows, first.got) == (
        stage, tap, request, step, 1, 5,
    )  # fmt: skip
    start = 0 if step == 0 else PROMPTS[request] + step - 1
    assert first.position == (start + row if tap.by_row else start + (PROMPTS[request] if step == 0 else 1) - 1)
    assert first.expected == true_hash(request, start + row, tap.reference)
    assert (outcome.differing, len(outcome.firsts)) == (1, 1)
    assert [key for key, cell in outcome.cells.items() if cell.differing] == [(tap.layer, step)]


def test_the_earliest_step_comes_first_and_then_the_way_along_the_pipeline() -> None:
    changes = {
        (7, 2, Tap(0, LAYER_OUT), 0): 1,
        (7, 1, Tap(3, LAYER_OUT), 0): 1,
        (7, 1, Tap(2, LAYER_OUT), 0): 1,
        (8, 2, Tap(1, LAYER_IN), 0): 1,
    }
    outcome = compare(record(REFERENCE), pipeline(changes))
    assert [(first.request, first.step, first.tap) for first in outcome.firsts] == [
        (7, 1, Tap(2, LAYER_OUT)), (8, 2, Tap(1, LAYER_IN)),
    ]  # fmt: skip


def test_what_a_stage_sends_and_receives_is_what_the_layer_before_returned() -> None:
    for tap, stage in ((Tap(CUT - 1, WIRE_OUT), 0), (Tap(CUT - 1, WIRE_IN), 1)):
        first = compare(record(REFERENCE), pipeline({(8, 0, tap, 1): 9})).first
        assert first is not None
        assert (first.stage, first.tap, first.position) == (stage, tap, 1)


def test_the_order_of_steps_in_a_record_is_nothing() -> None:
    def shuffled(made: Record) -> Record:
        steps = list(made.steps)
        random.Random(1).shuffle(steps)
        return replace(made, steps=steps)

    assert compare(shuffled(record(REFERENCE)), [shuffled(each) for each in pipeline()]).verdict is Verdict.IDENTICAL


def test_a_step_that_is_computed_again_has_to_have_the_same_bits() -> None:
    first, last = pipeline()
    again = replace(last, steps=[*last.steps, *last.steps[:2]])
    assert compare(record(REFERENCE), [first, again]).verdict is Verdict.IDENTICAL
    wrong = record(1, {(7, 1, Tap(3, LAYER_OUT), 0): 3})
    outcome = compare(record(REFERENCE), [first, replace(last, steps=[*last.steps, wrong.steps[1]])])
    assert outcome.first is not None
    assert (outcome.first.step, outcome.first.tap) == (1, Tap(3, LAYER_OUT))


def test_another_token_is_different_although_every_hash_is_equal() -> None:
    first, last = pipeline()
    outcome = compare(record(REFERENCE), [first, with_step(last, 1, token=3)])
    assert outcome.verdict is Verdict.DIFFERENT
    assert outcome.first is not None
    assert (outcome.first.what, outcome.first.tap.name, outcome.first.got) == (What.TOKEN, TOKEN, 3)


def test_a_step_that_is_missing_added_or_composed_otherwise_is_different() -> None:
    first, last = pipeline()
    for changed, what in (
        (replace(first, steps=first.steps[:-1]), What.MISSING),
        (with_step(first, 1, number=STEPS), What.MISSING),
        (with_step(first, 5, request=5), What.MISSING),
        (with_step(first, 1, start=4), What.COMPOSITION),
    ):
        outcome = compare(record(REFERENCE), [changed, last])
        assert outcome.verdict is Verdict.DIFFERENT
        assert what in {each.what for each in outcome.firsts}
    extra = replace(first, steps=[*first.steps, with_step(first, 2, number=STEPS).steps[2]])
    outcome = compare(record(REFERENCE), [extra, last])
    assert [each.what for each in outcome.firsts] == [What.EXTRA]


@pytest.mark.parametrize("nothing", [[], [replace(record(1), steps=[])]])
def test_nothing_compared_is_not_identical(nothing: list[Record]) -> None:
    assert compare(record(REFERENCE), nothing).verdict is Verdict.DIFFERENT


def sketched(made: Record, factor: float) -> Record:
    """The record with a sketch of the last row of the second tap in each step."""
    steps = []
    for each in made.steps:
        numbers = struct.pack("<8f", *(factor * (place + 1) for place in range(8)))
        tap = next(place for place, tap in enumerate(each.layout.taps) if tap.name == LAYER_OUT and tap.layer >= CUT)
        layout = replace_layout(each.layout, tap)
        steps.append(replace(with_step(replace(made, steps=[each]), 0, sketches=numbers).steps[0], layout=layout))
    return replace(made, steps=steps)


def replace_layout(layout: object, tap: int) -> object:
    return msgspec.structs.replace(layout, sketched=(tap,))


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "within tolerance"), (1.00001, "within tolerance"), (1.1, "different")]
)
def test_under_another_fingerprint_sketches_are_compared_and_never_called_identical(
    factor: float, verdict: str
) -> None:
    stages = [record(0), sketched(record(1, threads=2), factor)]
    outcome = compare(sketched(record(REFERENCE), 1.0), stages)
    assert outcome.verdict == verdict
    assert outcome.foreign == {1: ["threads"]}
    assert outcome.sketches == len(stages[1].steps)


def test_without_sketches_nothing_is_within_tolerance() -> None:
    assert compare(record(REFERENCE), [record(0, threads=2), record(1, threads=2)]).verdict is Verdict.DIFFERENT


def test_under_another_fingerprint_another_token_is_different() -> None:
    stages = [record(0), with_step(sketched(record(1, processor="another"), 1.0), 0, token=1)]
    assert compare(sketched(record(REFERENCE), 1.0), stages).verdict is Verdict.DIFFERENT


def test_requests_are_named_by_their_tokens_in_order() -> None:
    names = {request_key(prompt) for prompt in ([1, 2, 3], [1, 3, 2], [1, 2], [1, 2, 3, 0], [], [0])}
    assert len(names) == 6
    assert request_key([1, 2], image=1) != request_key([1, 2])
    assert Tap(1, WIRE_IN).reference == Tap(1, LAYER_OUT)
