# SPDX-License-Identifier: Apache-2.0
"""Why a pipeline computed something else, by the place of the first difference and the tensors of both calls there."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import takewhile

from torch import Tensor

from zpptool.engines.transformers.witness.hooks import CALL
from zpptool.engines.transformers.witness.replay import ARGUMENTS, MASK, POSITIONS, part_of_call
from zpptool.engines.witness.capture import Capture
from zpptool.engines.witness.change import change_in_words, same
from zpptool.witness.compare import Difference, What
from zpptool.witness.row_hash import MASK as ALL_BITS
from zpptool.witness.row_hash import hash_rows
from zpptool.witness.taps import (
    ATTENDED,
    BEFORE_LAYERS,
    EMBEDDING,
    INPUT_IDS,
    KEY,
    LAYER_IN,
    LOGITS,
    QUERY,
    STATE_AFTER,
    STATE_BEFORE,
    TOKEN,
    VALUE,
    WIRE_IN,
    WIRE_OUT,
    Tap,
)


class Kind(StrEnum):
    """The kinds of causes."""

    WEIGHTS = "weights"
    POSITIONS = "positions"
    MASK = "mask"
    STATE = "state"
    COMPUTATION = "computation"
    HANDOVER = "handover"
    WIRE = "wire"
    TOKENS = "tokens"
    SAMPLER = "sampler"
    STEPS = "steps"
    UNKNOWN = "unknown"


SECOND = " #2"
"""The ending of a tap's name where it came again within a step (`StepRecorder.take`)."""
Origins = Mapping[int, tuple[int, int, Tap]]
"""Of the hash of each row of the unsplit model: request, position and tap."""
Cause = tuple[Kind, str, str]
"""The kind, the cause in words, and the name of the tensor that is meant; empty for the tap itself."""


def cause_of(
    first: Difference, theirs: Capture, ours: Capture, origins: Origins, weights: Mapping[str, Tensor]
) -> Cause:
    """The cause of a difference.

    Args:
        first: the first difference, by the taps of level `ops`.
        theirs: what the unsplit model computed in that layer and step.
        ours: what the pipeline did.
        origins: where each row of the unsplit model's computation comes from.
        weights: all parameters of the unsplit model, by name.
    """
    name = first.tap.name
    if first.what in (What.MISSING, What.EXTRA, What.COMPOSITION):
        return Kind.STEPS, _of_steps(first), ""
    if name == INPUT_IDS:
        return Kind.TOKENS, f"stage {first.stage} was called with another token than the one that was chosen", ""
    if name == TOKEN:
        return Kind.SAMPLER, _of_sampler(first, ours), ""
    if name in (WIRE_IN, WIRE_OUT):
        return Kind.WIRE, _of_wire(first, theirs, ours, origins), ""
    if name.startswith(CALL):
        part = part_of_call(name.removeprefix(CALL))
        kind = {POSITIONS: Kind.POSITIONS, MASK: Kind.MASK, ARGUMENTS: Kind.HANDOVER}[part]
        return (
            kind,
            f"what layer {first.tap.layer} is called with as {name.removeprefix(CALL)} {_change(name, theirs, ours)}",
            "",
        )
    wrong = changed_weights(theirs, ours)
    if wrong and not name.startswith(STATE_BEFORE):
        of_tap = [weight for weight in wrong if weight.startswith(f"{name}.")]
        return Kind.WEIGHTS, *_of_weights((of_tap or wrong)[0], first, theirs, ours, weights)
    if name in (KEY, VALUE, ATTENDED) and (masks := _mask_of_one_side(theirs, ours)):
        return Kind.MASK, masks, ""
    if any(other.endswith(SECOND) and other not in theirs.taps for other in ours.taps):
        return Kind.COMPUTATION, f"modules of layer {first.tap.layer} were called more than once in the step", ""
    if name.startswith((STATE_BEFORE, STATE_AFTER)) or _is_state(name, theirs, ours):
        return Kind.STATE, _of_state(name, theirs, ours), ""
    if name == LAYER_IN and first.tap.layer > 0:
        return Kind.HANDOVER, _of_handover(first, theirs, ours, origins), ""
    return Kind.COMPUTATION, _of_computation(first, theirs, ours), ""


def changed_weights(theirs: Capture, ours: Capture) -> list[str]:
    """The names of the layer's weights that are not those of the unsplit model."""
    return [
        name for name, tensor in theirs.weights.items() if name in ours.weights and not same(tensor, ours.weights[name])
    ]


def state_in_words(theirs: Capture, ours: Capture, step: int) -> str:
    """What is wrong with a layer's state before a step, where what was computed before that step is right."""
    for name in theirs.taps:
        expected, got = theirs.taps[name], ours.taps.get(name)
        if name.startswith(STATE_BEFORE) and got is not None and not same(expected, got):
            return f"{_of_state(name, theirs, ours)}, at step {step}"
    return "the state of the layer was changed after it was used"


def origin_in_words(expected: Tensor, got: Tensor, first: Difference, origins: Origins) -> str:
    """Where the first row that is wrong comes from in the unsplit model; empty if it is not known there.

    Args:
        expected: the rows of the step in the unsplit model.
        got: in the pipeline.
        first: the difference.
        origins: where each row of the unsplit model's computation comes from.
    """
    if expected.dim() < 2 or expected.shape != got.shape:
        return ""
    theirs, ours = (hash_rows(tensor).tolist() for tensor in (expected, got))
    row = next((row for row, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]), None)
    found = origins.get(ours[row] & ALL_BITS) if row is not None else None
    if found is None:
        return ""
    request, position, tap = found
    whose = "the same request" if request == first.request else "another request"
    what = "" if tap.reference == first.tap.reference else f" at {tap}"
    return f"has at position {first.position} the row of position {position} of {whose}{what}"


def _change(name: str, theirs: Capture, ours: Capture, others: Mapping[str, Tensor] | None = None) -> str:
    expected, got = theirs.taps.get(name), ours.taps.get(name)
    if expected is None or got is None:
        return "is not there" if got is None else "was not expected"
    return "is the same" if same(expected, got) else change_in_words(expected, got, others)


def _of_steps(first: Difference) -> str:
    words = {
        What.MISSING: "a step was not computed there",
        What.EXTRA: "a step was computed that the unsplit model does not have",
        What.COMPOSITION: "a step has other tokens than that of the unsplit model",
    }
    return words[first.what]


def _of_sampler(first: Difference, ours: Capture) -> str:
    logits = ours.taps.get(LOGITS)
    words = f"the logits are right, but token {first.got} was chosen and not {first.expected}"
    if logits is None or first.got is None:
        return words
    flat = logits.flatten().float()
    rank = int((flat > flat[first.got]).sum()) + 1
    return f"{words}: it is number {rank} by its logit"


def _of_wire(first: Difference, theirs: Capture, ours: Capture, origins: Origins) -> str:
    name = first.tap.name
    where = f"what stage {first.stage} {'received' if name == WIRE_IN else 'sent'}"
    got, expected = ours.taps.get(name), theirs.taps.get("out")
    if got is None or expected is None:
        return f"{where} is not what was computed before"
    return f"{where} {origin_in_words(expected, got, first, origins) or change_in_words(expected, got)}"


def _of_weights(
    name: str, first: Difference, theirs: Capture, ours: Capture, weights: Mapping[str, Tensor]
) -> tuple[str, str]:
    expected, got = theirs.weights[name], ours.weights[name]
    others = {other: tensor for other, tensor in weights.items() if tensor.shape == got.shape}
    own = f"layer {first.tap.layer}'s weight {name}" if theirs.settings else f"the weight {name}"
    if first.tap.layer == BEFORE_LAYERS:
        own = "the weight of the embedding"
    return f"{own} {change_in_words(expected, got, others)}", name


def _is_state(name: str, theirs: Capture, ours: Capture) -> bool:
    """Keys or values that were right before they went into the cache."""
    if name not in (KEY, VALUE):
        return False
    expected, got = theirs.taps.get(QUERY), ours.taps.get(QUERY)
    return expected is not None and got is not None and same(expected, got)


def _mask_of_one_side(theirs: Capture, ours: Capture) -> str:
    """What is said where only one side has a mask; empty if both have one, or none."""
    masks = [
        {name for name in capture.taps if name.startswith(CALL) and part_of_call(name) == MASK}
        for capture in (theirs, ours)
    ]
    if bool(masks[0]) == bool(masks[1]):
        return ""
    return f"attention was masked by {'the unsplit model' if masks[0] else 'the pipeline'} alone"


def _of_state(name: str, theirs: Capture, ours: Capture) -> str:
    kept = name.removeprefix(STATE_BEFORE).removeprefix(STATE_AFTER).strip()
    when = "before the step" if name.startswith(STATE_BEFORE) else "after the step"
    others = {
        f"the {other.removeprefix(STATE_BEFORE).strip()}": tensor
        for other, tensor in theirs.taps.items()
        if other.startswith(STATE_BEFORE) and other != name
    }
    return f"the state of the layer ({kept}) {when} {_change(name, theirs, ours, others)}"


def _of_handover(first: Difference, theirs: Capture, ours: Capture, origins: Origins) -> str:
    expected, got = theirs.taps.get(LAYER_IN), ours.taps.get(LAYER_IN)
    origin = origin_in_words(expected, got, first, origins) if expected is not None and got is not None else ""
    return f"what goes into layer {first.tap.layer} {origin or 'is not what came out before it'}"


def _of_computation(first: Difference, theirs: Capture, ours: Capture) -> str:
    name = first.tap.name
    settings = [
        f"{key} is {ours.settings[key]!r}, not {value!r}"
        for key, value in theirs.settings.items()
        if key in ours.settings and ours.settings[key] != value
    ]
    before = takewhile(lambda tap: tap[0] != name, ours.taps.items())
    others = {f"{other} of the same layer": tensor for other, tensor in before}
    what = "embedding" if name == EMBEDDING else f"{first.tap}"
    words = f"with the same input and weights, {what} {_change(name, theirs, ours, others)}"
    return f"{words}: {'; '.join(settings)}" if settings else words
