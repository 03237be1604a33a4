# SPDX-License-Identifier: Apache-2.0
"""Refuse a checkpoint in which a layer lacks weights that it needs.

Tools that store a tensor once which several layers share in memory (merged models) drop the copies, and conversions
lose tensors. What is left can look like a layer of another kind, for example one that reads another's cache. A layer is
complete if it has all projections of a module that other layers have, or if the config says why it does not.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zpptool.checkpoint.decoder import Decoder
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.roles import words_of
from zpptool.checkpoint.shared_state import states_sharing
from zpptool.errors import invalid_error

_FAMILIES = (
    frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}),
    frozenset({"gate_proj", "up_proj", "down_proj"}),
    frozenset({"wq", "wk", "wv", "wo"}),
    frozenset({"w1", "w2", "w3"}),
    frozenset({"query", "key", "value"}),
    frozenset({"fc1", "fc2"}),
)
"""Projections that belong together: a module that has one of them has the others too, if any layer's has."""
_KEYS_AND_VALUES = frozenset({"k_proj", "v_proj", "wk", "wv", "key", "value"})


def check_layers(decoder: Decoder, index: CheckpointIndex) -> None:
    """Refuse a checkpoint with an incomplete layer.

    Raises:
        ZppError: (INVALID) a layer lacks a projection, and the config does not say why.
    """
    for layer, lacking in _incomplete_layers(decoder, index.config):
        raise invalid_error(
            f"{index.directory}: layer {layer} lacks {', '.join(sorted(lacking))}, which other layers have, and "
            "config.json does not say that layers share or omit them",
            "The checkpoint is incomplete: tensors were lost when it was saved, merged or converted. Save it again "
            "with every layer's own tensors (safetensors' save_model or clone() before saving).",
        )


def _incomplete_layers(decoder: Decoder, config: dict[str, Any]) -> Iterator[tuple[int, set[str]]]:
    children: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, layer in decoder.layer_of.items():
        parts = decoder.within_layer(name).split(".")
        if parts[-1] != "bias":
            for place, part in enumerate(parts):
                children[layer][".".join(parts[:place])].add(part)
    excused = _excused(config)
    for layers in _layers_of_one_kind(sorted(children), decoder.num_layers, text_config(config)):
        yield from _without_projections({layer: children[layer] for layer in layers}, excused)
        yield from _poorer_layers({layer: children[layer] for layer in layers})


def _without_projections(
    children: Mapping[int, Mapping[str, set[str]]], excused: frozenset[str]
) -> Iterator[tuple[int, set[str]]]:
    """Yield the layers with some projections of a module, whose others only other layers have.

    A module that also has what the other layers' lacks is of another kind and not compared with theirs.
    """
    found: dict[str, dict[frozenset[str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for layer, modules in children.items():
        for parent, parts in modules.items():
            found[parent][frozenset(parts)].append(layer)
    for parent, kinds in found.items():
        for own, layers in kinds.items():
            fullest = max((other for other in kinds if other > own), key=len, default=own)
            for family in _FAMILIES:
                lacking = (fullest - own) & family
                if own & family and lacking and not lacking <= excused:
                    yield layers[0], {f"{parent}.{part}" if parent else part for part in lacking}


def _poorer_layers(children: Mapping[int, Mapping[str, set[str]]]) -> Iterator[tuple[int, set[str]]]:
    """Yield the layers that lack a module with projections of most layers of their kind, and have nothing instead."""
    held = {
        layer: frozenset((parent, part) for parent, parts in modules.items() for part in parts)
        for layer, modules in children.items()
    }
    usual, count = Counter(held.values()).most_common(1)[0]
    if count * 2 <= len(held):
        return
    for layer, own in held.items():
        lacking = {f"{parent}.{part}" for parent, part in usual - own if any(part in family for family in _FAMILIES)}
        if own < usual and lacking and not {name.rpartition(".")[2] for name in lacking} <= _KEYS_AND_VALUES:
            yield layer, lacking


def _excused(config: dict[str, Any]) -> frozenset[str]:
    """Return the projections that a layer may lack, because the config says that it uses others in their place."""
    if states_sharing(config):
        return _KEYS_AND_VALUES
    equal = any(value is True and {"k", "eq", "v"} <= words_of(key) for key, value in text_config(config).items())
    return frozenset({"v_proj", "wv", "value"}) if equal else frozenset()


def _layers_of_one_kind(layers: list[int], num_layers: int, text: dict[str, Any]) -> Iterable[list[int]]:
    """Group the layers by their entries in the config's lists and patterns that have one for each layer."""
    stated = [
        value
        for key, value in text.items()
        if (isinstance(value, list) or (isinstance(value, str) and "pattern" in key)) and len(value) == num_layers
    ]
    groups: dict[str, list[int]] = defaultdict(list)
    for layer in layers:
        groups[json.dumps([value[layer] for value in stated])].append(layer)
    return groups.values()
