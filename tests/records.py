# SPDX-License-Identifier: Apache-2.0
"""Witness records made by hand: a model of four layers in two stages, and what each step of it hashes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from zpptool.witness.fingerprint import Fingerprint
from zpptool.witness.options import Level
from zpptool.witness.record import REFERENCE, Computed, Header, Layout, Record, Step
from zpptool.witness.row_hash import hash_integers
from zpptool.witness.taps import EMBEDDING, LAYER_IN, LAYER_OUT, LOGITS, WIRE_IN, WIRE_OUT, Tap

FINGERPRINT = Fingerprint("transformers 5.19.0", "2.13.0", "cpu", "a CPU", "AVX512", 1, "float32")
LAYERS, CUT = 4, 2
PROMPTS = {7: 5, 8: 3}
"""The number of tokens of each request's prompt."""
STEPS = 3
Changes = Mapping[tuple[int, int, Tap, int], int]
"""By request, step, tap and row: the hash in place of the right one."""


def taps_of(stage: int) -> list[Tap]:
    """What a stage records, or the unsplit model."""
    start, end = {REFERENCE: (0, LAYERS), 0: (0, CUT), 1: (CUT, LAYERS)}[stage]
    taps = [Tap(-1, EMBEDDING)] if start == 0 else [Tap(start - 1, WIRE_IN)]
    for layer in range(start, end):
        taps += [Tap(layer, LAYER_IN), Tap(layer, LAYER_OUT)]
    return [*taps, Tap(LAYERS, LOGITS, False) if end == LAYERS else Tap(end - 1, WIRE_OUT)]


def true_hash(request: int, position: int, tap: Tap) -> int:
    """What a row hashes to where nothing is wrong."""
    layer, name = (tap.layer, tap.name) if tap.name in (EMBEDDING, LOGITS) else (tap.layer, LAYER_OUT)
    if tap.name == LAYER_IN:
        layer, name = (tap.layer - 1, LAYER_OUT) if tap.layer else (-1, EMBEDDING)
    return hash_integers([request, position, layer, *name.encode()])


def record(stage: int, changes: Changes | None = None, **header: Any) -> Record:
    """The record of a stage, or of the unsplit model (`REFERENCE`)."""
    changes = changes or {}
    taps = taps_of(stage)
    layout = Layout(tuple(taps))
    fingerprint = replace_fields(FINGERPRINT, header)
    made = Record(Header("digest", stage, (taps[1].layer, taps[-2].layer + 1), Level.LAYERS, fingerprint))
    for request, prompt in PROMPTS.items():
        start = 0
        for number in range(STEPS):
            tokens = 1 if number else prompt
            hashes = [
                changes.get((request, number, tap, row), true_hash(request, start + row, tap))
                for tap in taps
                for row in range(tokens if tap.by_row else 1)
            ]
            token = 100 * request + number if stage in (REFERENCE, 1) else -1
            content = b"".join(each.to_bytes(8, "little") for each in hashes)
            made.steps.append(Computed(Step(request, number, start, tokens, 0, 0, content, b"", token), layout))
            start += tokens
    return made


def replace_fields(fingerprint: Fingerprint, changes: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint with some fields replaced."""
    return msgspec.structs.replace(fingerprint, **changes)


def with_step(made: Record, place: int, **changes: Any) -> Record:
    """The record with one step replaced."""
    steps = list(made.steps)
    steps[place] = replace(steps[place], step=msgspec.structs.replace(steps[place].step, **changes))
    return replace(made, steps=steps)


def pipeline(changes: Changes | None = None) -> Sequence[Record]:
    """The records of both stages."""
    return [record(0, changes), record(1, changes)]
