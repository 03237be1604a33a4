# SPDX-License-Identifier: Apache-2.0
"""Find the layers that read state which an earlier layer computes: a key and value cache, selected indices, values.

Features of a vision tower that are added to the first layers are such state too, because only the first stage has
them.

A layer that reads such state must be in the same stage as the layer that computes it, because only the hidden state is
passed between stages. The rules are general: keys of the config that say that layers share or reuse such state,
whatever the model is called, and layers that lack the modules with which others compute this state. State that is
shared in an unknown manner keeps all layers together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from zpptool.checkpoint.decoder import Decoder
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.model_config import decoder_configs
from zpptool.checkpoint.roles import PREDICTION_WORDS, TOWER_WORDS, words_of
from zpptool.errors import invalid_error

_SHARING_WORDS = frozenset({"share", "shared", "shares", "sharing", "reuse", "reused", "reuses", "yoco", "cla"})
_STATE_WORDS = frozenset({
    "kv", "cache", "caches", "index", "indexer", "indexers", "indices", "topk", "key", "keys", "value", "values",
    "attn", "attention", "state", "states", "memory", "yoco", "cla",
})  # fmt: skip
_NO_STATE_WORDS = frozenset({
    "adapter", "expert", "experts", "mlp", "intermediate", "embedding", "embeddings", "norm", "layernorm", "bias",
    "head", "dim", "size", "weight", "weights", "bottleneck", "query", "position", "input", "output",
}) | PREDICTION_WORDS | TOWER_WORDS  # fmt: skip
_PERIOD_WORDS = frozenset({"factor", "every", "interval", "freq", "period"})
_FUSED_PROJECTIONS = frozenset({"Wqkv", "wqkv", "qkv_proj", "query_key_value", "qkv", "c_attn", "in_proj_qkv"})
_OUT_PROJECTIONS = frozenset({"out_proj", "o_proj", "dense", "c_proj", "wo"})
_STATE_SPACE_MODULES = frozenset({"A_log", "conv1d", "x_proj", "dt_proj"})


class Reading(NamedTuple):
    """A layer that reads the state of an earlier one.

    Attributes:
        reader: the layer that reads.
        source: the layer whose state it reads.
        what: the state, for messages.
    """

    reader: int
    source: int
    what: str


def state_readings(decoder: Decoder, tensors: Mapping[str, TensorInfo], config: dict[str, Any]) -> tuple[Reading, ...]:
    """Return all layers that read an earlier layer's state, from config, names and shapes.

    Raises:
        ZppError: (INVALID) the layer types are not strings.
    """
    count = decoder.num_layers
    named = [*_without_keys(decoder), *_narrow_projections(decoder, tensors), *_without_state_space(decoder)]
    named += _first_values(decoder)
    tower = _tower_features(count, config)
    stated, unknown = _stated_readings(count, config)
    if unknown and not named and not stated:
        stated = [Reading(layer, 0, f"state (config.json's {unknown[0]})") for layer in range(1, count)]
    found = sorted([*stated, *named, *tower])
    return tuple(dict.fromkeys(reading for reading in found if 0 <= reading.source < reading.reader < count))


def joined_layers(readings: Iterable[Reading]) -> dict[int, str]:
    """Return the layers that must be in the stage of the preceding layer, with the reason.

    A layer is joined if it is after the source of a reading and not after its reader; the first such reading counts.
    """
    joined: dict[int, str] = {}
    spans: list[tuple[int, int]] = []  # joined so far: first and last layer, in order
    for reading in sorted(readings):
        reason = f"layer {reading.reader} reads {reading.what} of layer {reading.source}"
        start, last = reading.source + 1, reading.reader
        while spans and spans[-1][1] >= start:
            known = spans.pop()
            joined |= dict.fromkeys(range(known[1] + 1, last + 1), reason)
            last, start = known[0] - 1, min(start, known[0])
        joined |= dict.fromkeys(range(reading.source + 1, last + 1), reason)
        spans.append((start, reading.reader))
    return joined


def states_sharing(config: dict[str, Any]) -> bool:
    """Return whether the config says that layers share or reuse a key and value cache or other state."""
    return any(True for part in decoder_configs(config) for _entry in _sharing_entries(part))


def _stated_readings(count: int, config: dict[str, Any]) -> tuple[list[Reading], list[str]]:
    """Return the readings that the config states, and the keys that state some in an unknown form."""
    parts = decoder_configs(config)
    found = [reading for part in parts for reading in (*_last_layers(count, part), *_selected_indices(count, part))]
    unknown = []
    for key, value in (entry for part in parts for entry in _sharing_entries(part)):
        if key == "num_kv_shared_layers" or (found and type(value) is bool):
            continue
        sources = _sources(key, value, count)
        if sources is None:
            unknown.append(key)
        else:
            what = "the key and value cache" if words_of(key) & {"kv", "cla", "cache"} else f"the state ({key})"
            found += (Reading(reader, source, what) for reader, source in sources.items())
    return found, [] if found else unknown


def _sharing_entries(part: Mapping[str, Any], inside: frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a config, at any depth, whose key says that state is shared.

    Entries without effect are left out: no layers, and details of what is switched off (`use_cla: false`).
    """
    off = [words_of(key) - {"use", "enable"} for key, value in part.items() if value is False]
    for key, value in part.items():
        words = words_of(key)
        if words & _NO_STATE_WORDS or any(switch and switch <= words for switch in off):
            continue
        if words & _SHARING_WORDS and (words | inside) & _STATE_WORDS:
            if not (value is None or value in ([], {}, "") or (type(value) is int and value <= 0)):
                yield key, value
        elif isinstance(value, dict):
            yield from _sharing_entries(value, inside | words)


def _sources(key: str, value: Any, count: int) -> dict[int, int] | None:
    """Return the source of each reading layer as the value of a config key states it; None if its form is unknown."""
    if type(value) is int and words_of(key) & _PERIOD_WORDS:
        return {layer: layer - layer % value for layer in range(count) if layer % value}
    if isinstance(value, dict):
        pairs = [(name, source) for name, source in value.items() if name.isdecimal() and type(source) is int]
        return {int(name): source for name, source in pairs} if len(pairs) == len(value) else None
    if not isinstance(value, list):
        return None
    if all(isinstance(group, list) and all(type(layer) is int for layer in group) for group in value):
        return {layer: min(group) for group in value if group for layer in group if layer != min(group)}
    if len(value) < count:
        return None
    value = value[:count]  # layers past the last, which predict, may be listed too
    if all(type(entry) is bool for entry in value):
        return _after_the_last(value)
    if all(entry is None or type(entry) is int for entry in value):
        return _source_map(value) or _groups(value)
    return None


def _source_map(value: list[int | None]) -> dict[int, int]:
    """Return the sources if each entry is the layer that is read: its own number, or -1 or None, for none."""
    sources = {
        layer: source for layer, source in enumerate(value) if source is not None and source >= 0 and source != layer
    }
    own = all(source < layer and source not in sources for layer, source in sources.items())
    return sources if own else {}


def _groups(value: list[int | None]) -> dict[int, int]:
    """Return the first layer of its group for each other layer; entries are the numbers of groups."""
    first: dict[int, int] = {}
    for layer, group in enumerate(value):
        if group is not None and group >= 0:
            first.setdefault(group, layer)
    return {layer: first[group] for layer, group in enumerate(value) if group in first and first[group] != layer}


def _after_the_last(shares: Iterable[bool]) -> dict[int, int]:
    """Return, for each layer that shares, the last layer before it that does not."""
    sources: dict[int, int] = {}
    last = 0
    for layer, shared in enumerate(shares):
        if not shared:
            last = layer
        elif layer:
            sources[layer] = last
    return sources


def _selected_indices(count: int, text: Mapping[str, Any]) -> Iterator[Reading]:
    """Yield the layers that a list, a pattern or a frequency in the config marks as using an earlier layer's state."""
    listed = False
    for key, value in text.items():
        if isinstance(value, list) and len(value) >= count and all(isinstance(entry, str) for entry in value):
            marked = [_is_shared_kind(key, entry) for entry in value[:count]]
        elif isinstance(value, str) and {"index", "pattern"} <= words_of(key) and len(value) >= count:
            marked = [letter in "Ss" for letter in value[:count]]
        else:
            continue
        listed = listed or bool({"index", "indexer"} & words_of(key))
        what = "the selected indices" if {"index", "indexer"} & words_of(key) else f"the state ({key})"
        yield from (Reading(reader, source, what) for reader, source in _after_the_last(marked).items())
    frequency, offset = text.get("index_topk_freq"), text.get("index_skip_topk_offset", 2)
    if not listed and type(frequency) is int and frequency > 1 and type(offset) is int:
        marked = [max(layer - offset + 1, 0) % frequency != 0 for layer in range(count)]
        found = _after_the_last(marked)
        yield from (Reading(reader, source, "the selected indices") for reader, source in found.items())


def _is_shared_kind(key: str, entry: str) -> bool:
    words = words_of(entry.replace("-", "_"))
    about = words | words_of(key)
    return bool(words & _SHARING_WORDS and about & _STATE_WORDS and not about & _NO_STATE_WORDS)


def _last_layers(count: int, text: Mapping[str, Any]) -> Iterator[Reading]:
    """Yield the last `num_kv_shared_layers` layers (the rule of Gemma 3n and 4).

    Each reads the last layer of the same type before them. If the config states no types, that could be any layer, so
    layer 0 is named, which keeps all of them together.

    Raises:
        ZppError: (INVALID) the layer types are not strings.
    """
    shared, types = text.get("num_kv_shared_layers"), text.get("layer_types")
    if not isinstance(shared, int) or not 0 < shared < count:
        return
    first, last_of = count - shared, {}
    if isinstance(types, list) and len(types) == count:
        if not all(isinstance(kind, str) for kind in types):
            raise invalid_error(
                "config.json's layer_types are not all strings", "Check that config.json is the model's own."
            )
        last_of = {kind: layer for layer, kind in enumerate(types[:first])}
    for layer in range(first, count):
        source = last_of.get(types[layer], 0) if last_of and isinstance(types, list) else 0
        yield Reading(layer, source, "the key and value cache")


def _without_keys(decoder: Decoder) -> Iterator[Reading]:
    """Yield each layer with a query but no key projection; it reads the last earlier layer with both."""
    projections: Mapping[int, set[str]] = defaultdict(set)
    for name, layer in decoder.layer_of.items():
        projections[layer].update(part for part in decoder.within_layer(name).split(".") if part.endswith("_proj"))
    keyed = sorted(layer for layer, present in projections.items() if {"q_proj", "k_proj"} <= present)
    for layer, present in projections.items():
        source = _last_before(keyed, layer)
        if (
            "q_proj" in present
            and not any(part.startswith(("k", "v", "qkv")) for part in present)
            and source is not None
        ):
            yield Reading(layer, source, "the key and value cache")


def _last_before(layers: list[int], layer: int) -> int | None:
    """Return the last of the sorted `layers` before a layer, or None."""
    place = bisect_left(layers, layer)
    return layers[place - 1] if place else None


def _narrow_projections(decoder: Decoder, tensors: Mapping[str, TensorInfo]) -> Iterator[Reading]:
    """Yield each layer whose fused projection is as narrow as the queries alone (YOCO); others hold keys and values."""
    fused: dict[int, int] = {}
    queries: dict[int, int] = {}
    for name, layer in decoder.layer_of.items():
        parts, shape = decoder.within_layer(name).split("."), tensors[name].shape
        if len(parts) < 2 or parts[-1] != "weight" or len(shape) != 2:
            continue
        if parts[-2] in _FUSED_PROJECTIONS:
            fused[layer] = shape[0]
        elif parts[-2] in _OUT_PROJECTIONS and not any("mlp" in part or "ffn" in part for part in parts):
            queries[layer] = shape[1]
    wide = sorted(layer for layer, rows in fused.items() if rows > queries.get(layer, rows))
    for layer, rows in fused.items():
        source = _last_before(wide, layer)
        if rows == queries.get(layer) and source is not None:
            yield Reading(layer, source, "the key and value cache")


def _without_state_space(decoder: Decoder) -> Iterator[Reading]:
    """Yield each layer that gates an earlier layer's state space output: it has its projections and no recurrence."""
    modules: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, layer in decoder.layer_of.items():
        parts = decoder.within_layer(name).split(".")
        for place, part in enumerate(parts):
            if place and part in _STATE_SPACE_MODULES | {"in_proj", "out_proj"}:
                modules[layer][".".join(parts[:place])].add(part)
    computing: dict[str, list[int]] = defaultdict(list)
    for layer in sorted(modules):
        for parent, found in modules[layer].items():
            if "in_proj" in found and found & _STATE_SPACE_MODULES:
                computing[parent].append(layer)
    for layer, parents in modules.items():
        for parent, found in parents.items():
            source = _last_before(computing[parent], layer)
            if found == {"in_proj", "out_proj"} and source is not None:
                yield Reading(layer, source, "the state space output")


def _tower_features(count: int, config: dict[str, Any]) -> Iterator[Reading]:
    """Yield each layer to which features of a vision tower are added: only the first stage has them (Qwen3-VL)."""
    for layer in range(1, min(_deepstack_levels(config), count)):
        yield Reading(layer, 0, "the image features (deepstack) that stage 0 adds to the output")


def _deepstack_levels(config: dict[str, Any]) -> int:
    """Return to how many of the first layers features of a vision tower are added."""
    indexes = config.get("deepstack_visual_indexes")
    own = len(indexes) if isinstance(indexes, list) else 0
    nested = (value for key, value in config.items() if isinstance(value, dict) and key.endswith("config"))
    return max(own, *map(_deepstack_levels, nested), 0)


def _first_values(decoder: Decoder) -> Iterator[Reading]:
    """Yield each layer that mixes the first layer's values into its own (RWKV-7)."""
    mixing = {layer for name, layer in decoder.layer_of.items() if "v_lora" in decoder.within_layer(name).split(".")}
    if mixing and 0 not in mixing:
        yield from (Reading(layer, 0, "the values") for layer in sorted(mixing))
