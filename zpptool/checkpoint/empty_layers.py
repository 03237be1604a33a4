# SPDX-License-Identifier: Apache-2.0
"""Find the decoder layers that, by the config, compute nothing and therefore have no tensors (pruned models)."""

from __future__ import annotations

from typing import Any

from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.roles import words_of

_NOTHING = frozenset({"no_op", "noop", "no-op", "identity", "none", "skip", "empty", "dummy", "pass"})
_REMOVED_WORDS = frozenset({"pruned", "skip", "skipped", "removed", "dropped", "noop", "dummy", "identity", "empty"})


def empty_layers(config: dict[str, Any], num_layers: int) -> frozenset[int]:
    """Return the layers that the config declares to compute nothing.

    They are marked in a list with an entry for each layer (`block_configs`, with `no_op: true` in attention and
    feed-forward part; or a kind such as `identity`), or listed by number under a key such as `pruned_layers`.
    """
    empty: set[int] = set()
    for key, value in text_config(config).items():
        if not isinstance(value, list):
            continue
        if len(value) == num_layers:
            empty |= {layer for layer, entry in enumerate(value) if _does_nothing(entry)}
        if words_of(key) & _REMOVED_WORDS and all(type(layer) is int for layer in value):
            empty |= set(value)
    return frozenset(layer for layer in empty if 0 <= layer < num_layers)


def _does_nothing(entry: Any) -> bool:
    if isinstance(entry, str):
        return entry.lower() in _NOTHING
    if not isinstance(entry, dict):
        return False
    parts = [part for part in entry.values() if isinstance(part, dict)]
    return entry.get("no_op") is True or (bool(parts) and all(part.get("no_op") is True for part in parts))
