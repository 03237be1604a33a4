# SPDX-License-Identifier: Apache-2.0
"""Find the tensors of the decoder layers.

Tensor names are grouped by the prefix before their first number. The decoder is the group whose numbers cover
`range(num_hidden_layers)`. Towers, prediction and speech parts are never taken for it, even if they have as many
layers. If config.json states no layer count, as in LLaVA-1.5, it is derived from the names where they are unambiguous.
An ambiguous checkpoint is refused, with the names in question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zpptool.checkpoint.empty_layers import empty_layers
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.model_config import stated_layer_count, text_config, unknown_layer_count
from zpptool.checkpoint.roles import PREDICTION_WORDS, SPEAKER_WORDS, TEXT_WORDS, TOWER_WORDS, words_of
from zpptool.errors import ZppError, invalid_error

_NOT_DECODER = TOWER_WORDS | PREDICTION_WORDS | SPEAKER_WORDS
_PREDICTOR_MODULES = frozenset({"eh_proj", "enorm", "hnorm", "shared_head"})
"""Modules of a prediction layer past the last: it combines an embedding with a hidden state (DeepSeek-V3's names)."""

MAX_LAYER_DIGITS = 9
"""Maximum digits of a layer number in a tensor name; layer ranges have the same limit."""

Group = Mapping[int, list[str]]
"""Tensor names by layer number."""


@dataclass(frozen=True)
class Decoder:
    """The decoder's layers.

    Attributes:
        prefix: the part of a tensor name before the layer number, for example `model.layers`.
        num_layers: number of decoder layers, without layers past the last that predict tokens past the next one.
        layer_of: the layer number of each tensor inside a decoder layer.
        predicting: the tensors of the layers past the last.
        notes: choices made for the checkpoint, for the user to read.
    """

    prefix: str
    num_layers: int
    layer_of: Mapping[str, int]
    predicting: frozenset[str]
    notes: tuple[str, ...] = ()

    def layers_of(self, name: str) -> tuple[int, ...]:
        """Return the layer of a tensor; empty if it is in none."""
        return (self.layer_of[name],) if name in self.layer_of else ()

    def within_layer(self, name: str) -> str:
        """Return the part of a layer tensor's name after the layer number."""
        start = len(self.prefix) + 1 if self.prefix else 0
        return name[start:].partition(".")[2]


def find_decoder(index: CheckpointIndex) -> Decoder:
    """Find the decoder layers of a checkpoint.

    Raises:
        ZppError: (INVALID) there are none, or several groups of tensors could be them.
    """
    groups = numbered_groups(index.tensors)
    eligible = {prefix: group for prefix, group in groups.items() if not words_of(prefix) & _NOT_DECODER}
    stated = stated_layer_count(index.config)
    notes: tuple[str, ...] = ()
    if stated is not None:
        prefix, num_layers = _covering(groups, eligible, stated, index), stated
        notes = _absent_layers(prefix, groups[prefix], stated)
    else:
        prefix, num_layers = _unstated(eligible, index)
        notes = (f"config.json does not state the number of layers: {prefix} holds {num_layers}",)
    layer_of = {name: layer for layer, names in groups[prefix].items() if layer < num_layers for name in names}
    predicting = frozenset(name for layer, names in groups[prefix].items() if layer >= num_layers for name in names)
    return Decoder(prefix, num_layers, layer_of, predicting, notes)


def _absent_layers(prefix: str, group: Group, num_layers: int) -> tuple[str, ...]:
    absent = [layer for layer in range(num_layers) if layer not in group]
    note = f"{prefix} holds no tensor of {_layers(absent)}: config.json says that nothing is computed there"
    return (note,) if absent else ()


def numbered_groups(names: Mapping[str, TensorInfo]) -> dict[str, dict[int, list[str]]]:
    """Group tensor names by the prefix before their first number, then by that number.

    Raises:
        ZppError: (INVALID) a number has more than `MAX_LAYER_DIGITS` digits.
    """
    groups: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isascii() and part.isdigit():
                if len(part) > MAX_LAYER_DIGITS:
                    raise invalid_error(
                        f"tensor {name[:80]}... has a number of {len(part)} digits, too long for a layer"
                    )
                groups[".".join(parts[:place])][int(part)].append(name)
                break
    return groups


def _covering(
    groups: Mapping[str, Group], eligible: Mapping[str, Group], num_layers: int, index: CheckpointIndex
) -> str:
    """Return the prefix of the one group that covers all layers and has only prediction layers past them."""
    empty = empty_layers(index.config, num_layers)
    wanted = [layer for layer in range(num_layers) if layer not in empty]
    extra = _prediction_layers(index.config)
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
            "this checkpoint's structure is not clear enough to split",
        )
    raise _no_decoder(groups, eligible, num_layers, index)


def _no_decoder(
    groups: Mapping[str, Group], eligible: Mapping[str, Group], num_layers: int, index: CheckpointIndex
) -> ZppError:
    """Build the error for a checkpoint none of whose groups has the layers that the config states."""
    stated = f"{index.directory}: config.json states {num_layers} layers"
    held = {prefix: [layer for layer in group if layer < num_layers] for prefix, group in eligible.items()}
    likely = max(held, key=lambda prefix: len(held[prefix]), default="")
    where = likely or "(top)"
    if 2 * len(held.get(likely, ())) < num_layers:
        found = ", ".join(f"{p or '(top)'} 0 to {max(g)}" for p, g in sorted(groups.items()) if 0 in g) or "none"
        return invalid_error(
            f"{stated}, but no group of tensors is numbered 0 to {num_layers - 1} (found: {found})",
            "check that config.json belongs to these weights",
        )
    absent = sorted(set(range(num_layers)).difference(held[likely]))
    if not absent:
        return invalid_error(
            f"{stated}, but the weights hold more: {where} 0 to {max(eligible[likely])}",
            "Restore the layer count of the model in config.json. A shorter model needs weights without the layers "
            "past its last.",
        )
    return invalid_error(
        f"{stated}, but {where} holds no tensor of {_layers(absent)}",
        "The checkpoint is incomplete, or belongs to another config.json: download or convert it again. A layer that "
        "computes nothing has to be declared in config.json (block_configs with no_op).",
    )


def _layers(numbers: list[int]) -> str:
    """Format layer numbers: `layers 2, 3`, and at most eight of them."""
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"layer{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:8]))}{more}"


def _unstated(eligible: Mapping[str, Group], index: CheckpointIndex) -> tuple[str, int]:
    """Return the prefix and layer count of the only group that can be the decoder layers."""
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
    """Narrow several groups down to those below a text model, with several tensors per layer and the hidden size."""
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
    """Return whether the tensors of a layer show that it predicts tokens past the next one."""
    return any(not _PREDICTOR_MODULES.isdisjoint(name.split(".")) for name in names)


def _prediction_layers(config: Mapping[str, Any]) -> int:
    """Return the number of prediction layers past the last one (`num_nextn_predict_layers` and similar keys)."""
    counts = [0]
    for key, value in config.items():
        if isinstance(value, dict):
            counts.append(_prediction_layers(value))
        elif words_of(key) & PREDICTION_WORDS and type(value) is int:
            counts.append(value)
    return max(counts)
