# SPDX-License-Identifier: Apache-2.0
"""Find the weights that several decoder layers share: each stage that needs them gets a copy.

State that layers share, such as a key and value cache, cannot be copied; see `shared_state`.
"""

from __future__ import annotations

from collections import defaultdict

from zpptool.checkpoint.decoder import Decoder
from zpptool.checkpoint.roles import words_of

_NOT_SHARED_BETWEEN_LAYERS = frozenset({"expert", "experts", "mlp", "head"})
"""Modules named shared that are not shared between layers, such as an expert shared by all tokens of a layer."""


def shared_weights(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Return the readers of each tensor that is stored in one layer and read by others too (Zamba's shared blocks).

    A module named shared is stored with its first layers only. It is read by every layer that lacks it and
    otherwise has the same modules. If several such modules are stored and used alternately, each is assumed to be read
    by all of these layers: an extra copy is harmless.

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
