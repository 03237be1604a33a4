# SPDX-License-Identifier: Apache-2.0
"""Find what decoder layers share beyond the hidden state passed from one to the next.

Shared weights can be split: each stage that needs them gets a copy. A key and value cache cannot: a layer that reads
another layer's cache has to be in the same stage. Nor can the first layers to which a vision tower's features are added
one by one (deepstack): only stage 0 has them. All are derived from names and config, by rules for any model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from zpptool.checkpoint.decoder import Decoder
from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.roles import words_of
from zpptool.errors import invalid_error

_NOT_SHARED_BETWEEN_LAYERS = frozenset({"expert", "experts", "mlp", "head"})
"""Modules named shared that are not shared between layers, such as an expert shared by all tokens of a layer."""


def shared_weights(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Return the readers of each tensor that is stored in one layer and read by others too (Zamba's shared blocks).

    A module named shared is stored with its first layers only. It is read by every layer that has otherwise the same
    modules and lacks it. If several such modules are stored and used alternately, each is assumed to be read by all of
    these layers: an extra copy is harmless.

    Returns:
        sorted layer numbers by tensor name.
    """
    modules: dict[int, set[str]] = defaultdict(set)
    stored: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, layer in decoder.layer_of.items():
        module, _, inner = decoder.within_layer(name).partition(".")
        modules[layer].add(module)
        words = words_of(module)
        if "shared" in words and not words & _NOT_SHARED_BETWEEN_LAYERS:
            stored[module][inner].append(name)
    read_by: dict[str, tuple[int, ...]] = {}
    for module, tensors in stored.items():
        for names in tensors.values():
            holders = {decoder.layer_of[name] for name in names}
            kinds = [modules[layer] - {module} for layer in holders]
            readers = {
                layer for layer, present in modules.items() if layer not in holders and present - {module} in kinds
            }
            if readers:
                read_by |= {name: tuple(sorted(readers | {decoder.layer_of[name]})) for name in names}
    return read_by


def joined_layers(decoder: Decoder, config: dict[str, Any]) -> dict[int, str]:
    """Return the layers that must be in the stage of the preceding layer, with the reason: they share a cache, or take
    features of an image."""
    sources = _stated_sources(decoder.num_layers, config) | _named_sources(decoder)
    levels = min(_deepstack_levels(config), decoder.num_layers)
    features = f"features of the vision tower are added to the first {levels} layers (deepstack)"
    return dict.fromkeys(range(1, levels), features) | {
        layer: f"layer {reader} reads the key and value cache of layer {source}"
        for reader, source in sorted(sources.items())
        for layer in range(source + 1, reader + 1)
    }


def _deepstack_levels(config: dict[str, Any]) -> int:
    """Return to how many of the first layers features of a vision tower are added (the rule of Qwen3-VL)."""
    indexes = config.get("deepstack_visual_indexes")
    own = len(indexes) if isinstance(indexes, list) else 0
    nested = (value for key, value in config.items() if isinstance(value, dict) and key.endswith("config"))
    return max(own, *map(_deepstack_levels, nested), 0)


def _stated_sources(num_layers: int, config: dict[str, Any]) -> dict[int, int]:
    """Return the layer whose cache each of the last `num_kv_shared_layers` layers reads (the rule of Gemma 3n and 4).

    It is the last layer of the same type before them. If the config states no types, it could be any layer, so layer 0
    is returned, which keeps all of them together.

    Raises:
        ZppError: (INVALID) the layer types are not strings.
    """
    text = text_config(config)
    count, types = text.get("num_kv_shared_layers"), text.get("layer_types")
    if not isinstance(count, int) or not 0 < count < num_layers:
        return {}
    first = num_layers - count
    if not isinstance(types, list) or len(types) != num_layers:
        return dict.fromkeys(range(first, num_layers), 0)
    if not all(isinstance(kind, str) for kind in types):
        raise invalid_error(
            "config.json's layer_types are not all strings", "Check that config.json is the model's own."
        )
    last_of = {kind: layer for layer, kind in enumerate(types[:first])}
    return {layer: last_of.get(types[layer], 0) for layer in range(first, num_layers)}


def _named_sources(decoder: Decoder) -> dict[int, int]:
    """Return the cache source of each layer with a query but no key projection: the last earlier layer with both."""
    projections: Mapping[int, set[str]] = defaultdict(set)
    for name, layer in decoder.layer_of.items():
        projections[layer].update(part for part in decoder.within_layer(name).split(".") if part.endswith("_proj"))
    keyed = sorted(layer for layer, present in projections.items() if {"q_proj", "k_proj"} <= present)
    return {
        layer: max(earlier)
        for layer, present in projections.items()
        if "q_proj" in present
        and not any(part.startswith(("k", "v", "qkv")) for part in present)
        and (earlier := [source for source in keyed if source < layer])
    }
