# SPDX-License-Identifier: Apache-2.0
"""Which tensors are the decoder's layers: the group of names, by the prefix before their first number, that is.

The group's numbers cover `range(num_hidden_layers)`. Towers, prediction and speech parts are never taken for it, even
with as many layers. Where config.json keeps the count to itself, as LLaVA-1.5's does, the names tell it if they leave
no choice. A doubt is refused with the names that are in doubt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zpptool.checkpoint.config import stated_layer_count, text_config, unknown_layer_count
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.roles import PREDICTION_WORDS, SPEAKER_WORDS, TEXT_WORDS, TOWER_WORDS, words_of
from zpptool.errors import invalid_error

_NOT_DECODER = TOWER_WORDS | PREDICTION_WORDS | SPEAKER_WORDS
_PREDICTOR_MODULES = frozenset({"eh_proj", "enorm", "hnorm", "shared_head"})
"""What a layer past the last holds if it predicts: it joins an embedding with a hidden state (DeepSeek-V3's names)."""

MAX_LAYER_DIGITS = 9
"""Of a layer's number, in a tensor's name: as many as a layer range may have."""

Group = Mapping[int, list[str]]
"""Names by the number in them."""


@dataclass(frozen=True)
class Decoder:
    """The decoder's layers.

    Attributes:
        prefix: what stands before a layer's number, for example `model.layers`.
        num_layers: that compute; more may follow that predict tokens past the next one.
        layer_of: the layer of each tensor that lies in one.
        predicting: the tensors of the layers past the last.
        notes: choices that a user should know of.
    """

    prefix: str
    num_layers: int
    layer_of: Mapping[str, int]
    predicting: frozenset[str]
    notes: tuple[str, ...] = ()

    def within_layer(self, name: str) -> str:
        """What follows the layer's number in the name of a tensor that lies in one."""
        start = len(self.prefix) + 1 if self.prefix else 0
        return name[start:].partition(".")[2]


def find_decoder(index: CheckpointIndex) -> Decoder:
    """Find the decoder's layers.

    Raises:
        ZppError: (INVALID) there are none, or it is not clear which they are.
    """
    groups = numbered_groups(index.tensors)
    eligible = {prefix: group for prefix, group in groups.items() if not words_of(prefix) & _NOT_DECODER}
    stated = stated_layer_count(index.config)
    notes: tuple[str, ...] = ()
    if stated is not None:
        prefix, num_layers = _covering(groups, eligible, stated, index), stated
    else:
        prefix, num_layers = _unstated(eligible, index)
        notes = (f"config.json does not say how many layers the model has: {prefix} holds {num_layers}",)
    layer_of = {name: layer for layer, names in groups[prefix].items() if layer < num_layers for name in names}
    predicting = frozenset(name for layer, names in groups[prefix].items() if layer >= num_layers for name in names)
    return Decoder(prefix, num_layers, layer_of, predicting, notes)


def numbered_groups(names: Mapping[str, TensorInfo]) -> dict[str, dict[int, list[str]]]:
    """Names by the prefix before their first number, then by that number."""
    groups: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isascii() and part.isdigit():
                if len(part) > MAX_LAYER_DIGITS:
                    raise invalid_error(
                        f"tensor {name[:80]}... has a number of {len(part)} digits, which is no layer's"
                    )
                groups[".".join(parts[:place])][int(part)].append(name)
                break
    return groups


def _covering(
    groups: Mapping[str, Group], eligible: Mapping[str, Group], num_layers: int, index: CheckpointIndex
) -> str:
    """The one group that covers the layers and holds none past them but those that predict."""
    wanted, extra = range(num_layers), _prediction_layers(index.config)
    fitting = [
        prefix
        for prefix, group in eligible.items()
        if all(layer in group for layer in wanted)
        and all(layer < num_layers + extra or _predicts(names) for layer, names in group.items() if layer >= num_layers)
    ]
    fitting = _most_likely(fitting, eligible, index)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise invalid_error(
            f"{index.directory}: the {num_layers} decoder layers could be {' or '.join(sorted(fitting))}",
            "this checkpoint's structure is not clear enough to cut",
        )
    found = ", ".join(f"{p or '(top)'} 0 to {max(g)}" for p, g in sorted(groups.items()) if 0 in g) or "none"
    raise invalid_error(
        f"{index.directory}: config.json tells of {num_layers} layers, but no tensors are numbered 0 to "
        f"{num_layers - 1} as layers are (found: {found})",
        "check that config.json belongs to these weights",
    )


def _unstated(eligible: Mapping[str, Group], index: CheckpointIndex) -> tuple[str, int]:
    """The one group that a decoder's layers could be, and how many these are."""
    counts: dict[str, int] = {}
    for prefix, group in eligible.items():
        predicting = {layer for layer, names in group.items() if _predicts(names)}
        computing = group.keys() - predicting
        whole = computing == set(range(len(computing))) and not (predicting and min(predicting) < len(computing))
        if whole and len(computing) > 1:
            counts[prefix] = len(computing)
    likely = _most_likely([prefix for prefix in counts if len(eligible[prefix][0]) > 1], eligible, index)
    if len(likely) != 1:
        raise unknown_layer_count(likely)
    return likely[0], counts[likely[0]]


def _most_likely(fitting: list[str], groups: Mapping[str, Group], index: CheckpointIndex) -> list[str]:
    """Of several groups those below a text model, with several tensors a layer, and as wide as the hidden state."""
    hidden_size = text_config(index.config).get("hidden_size")

    def is_wide(prefix: str) -> bool:
        shapes = [[index.tensors[name].shape for name in names] for names in groups[prefix].values()]
        return all(any(hidden_size in shape for shape in layer) for layer in shapes)

    fitting = _prefer(fitting, lambda prefix: bool(words_of(prefix) & TEXT_WORDS))
    fitting = _prefer(fitting, lambda prefix: all(len(names) > 1 for names in groups[prefix].values()))
    return _prefer(fitting, is_wide)


def _prefer(prefixes: list[str], wanted: Callable[[str], bool]) -> list[str]:
    return [prefix for prefix in prefixes if wanted(prefix)] or prefixes


def _predicts(names: list[str]) -> bool:
    """Whether a layer is one that predicts tokens past the next, by what it holds."""
    return any(not _PREDICTOR_MODULES.isdisjoint(name.split(".")) for name in names)


def _prediction_layers(config: Mapping[str, Any]) -> int:
    """How many layers past the last decoder layer the config tells of (`num_nextn_predict_layers` and its like)."""
    counts = [0]
    for key, value in config.items():
        if isinstance(value, dict):
            counts.append(_prediction_layers(value))
        elif words_of(key) & PREDICTION_WORDS and type(value) is int:
            counts.append(value)
    return max(counts)
