# SPDX-License-Identifier: Apache-2.0
"""The places in a model's computation that are recorded, and how a request is named."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from zpptool.witness.row_hash import hash_integers

BEFORE_LAYERS = -1
"""The layer number of what precedes the decoder layers. What follows them has their number."""
INPUT_IDS, EMBEDDING = "input ids", "embedding"
WIRE_IN, WIRE_OUT = "wire in", "wire out"
LAYER_IN, LAYER_OUT = "in", "out"
POSITIONS, ROTARY, MASK = "positions", "rotary", "mask"
STATE_BEFORE, STATE_AFTER = "state before", "state after"
QUERY, KEY, VALUE, ATTENDED = "attention q", "attention k", "attention v", "attention out"
LOGITS, TOKEN = "logits", "token"


class Tap(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One place in the computation.

    Attributes:
        layer: the decoder layer; see `BEFORE_LAYERS`. `wire out` has the last layer that was computed before it, and
            `wire in` too.
        name: one of the names above, or the name of a module within the layer, which stands for what it returns.
        by_row: whether there is one hash for each token; otherwise there is one for the whole step.
    """

    layer: int
    name: str
    by_row: bool = True

    @property
    def reference(self) -> Tap:
        """The tap of the unsplit model with the same tensor. What goes into a layer is what the one before returns."""
        if self.name in (WIRE_IN, WIRE_OUT):
            return Tap(self.layer, LAYER_OUT, self.by_row)
        return Tap(self.layer - 1, LAYER_OUT, self.by_row) if self.name == LAYER_IN and self.layer > 0 else self

    def __str__(self) -> str:
        return self.name if self.layer == BEFORE_LAYERS else f"layer {self.layer}, {self.name}"


def request_key(prompt: Sequence[int], image: int = 0) -> int:
    """A request's name, the same in every process that computes it: a hash of its prompt.

    Two requests with one prompt have the same name. Decoded alike, every tensor of theirs is the same, too.

    Args:
        prompt: its token ids.
        image: a hash of what is in it beside the tokens.
    """
    return hash_integers([*prompt, image])
