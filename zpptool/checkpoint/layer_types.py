# SPDX-License-Identifier: Apache-2.0
"""The type of each decoder layer, by what it is made of: attention, a mixture of experts, a state space, and so on.

Layers of one type take the same time and memory. Types are found from tensor names, shapes and dtypes, and from the
lists of the config that say which layers see a window only; there is no table of model types.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any

from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.model_config import decoder_configs
from zpptool.checkpoint.roles import words_of
from zpptool.checkpoint.structure import Structure

_LINEAR = frozenset({"linear", "rwkv", "recurrent", "rg", "lru", "kda", "gdn", "lightning", "conv", "shortconv"})
_STATE_SPACE = frozenset({"mamba", "ssm", "dt"})
_ATTENTION = frozenset({"attn", "attention", "mha", "q", "qkv", "wqkv", "query"})
_EXPERTS = frozenset({"experts", "expert", "moe"})
_WINDOWED = frozenset({"sliding", "chunked", "local", "window"})
LAYER_TYPE_KEYS = ("layer_types", "layers_block_type", "attention_types", "hybrid_override_pattern")
"""Config keys of lists with one word for each layer."""
PERIOD_KEY = "sliding_window_pattern"
"""Config key of a period: each such layer sees everything, the others a window (Gemma 3)."""

_Shape = tuple[tuple[str, str, tuple[int, ...]], ...]


def layer_types(index: CheckpointIndex, structure: Structure) -> tuple[str, ...]:
    """The type of each decoder layer, in order.

    Names are `attention`, `mamba`, `linear`, `hybrid` (attention beside one of those two) and `mlp`, with `_moe` where
    the layer has experts, and `sliding_` before it where it sees a window. Layers of one name whose tensors differ get
    a number: `attention`, `attention-2`.

    Args:
        index: of the checkpoint.
        structure: its structure.
    """
    decoder = structure.decoder
    shapes: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {layer: [] for layer in range(decoder.num_layers)}
    for name, layer in decoder.layer_of.items():
        tensor = index.tensors.get(name)
        if tensor is not None:  # a second name of a tensor has no entry of its own
            shapes[layer].append((decoder.within_layer(name), tensor.dtype, tuple(tensor.shape)))
    windows = windowed_layers(index.config, decoder.num_layers)
    seen: dict[str, list[_Shape]] = defaultdict(list)
    found = []
    for layer, tensors in shapes.items():
        name = type_by_names([within for within, _dtype, _shape in tensors])
        name = f"sliding_{name}" if layer in windows else name
        shape = tuple(sorted(tensors))
        if shape not in seen[name]:
            seen[name].append(shape)
        number = seen[name].index(shape) + 1
        found.append(name if number == 1 else f"{name}-{number}")
    return tuple(found)


def type_by_names(names: Sequence[str]) -> str:
    """The type of a layer by the names of its tensors after the layer's number."""
    children: dict[str, set[str]] = defaultdict(set)
    for name in names:
        child, _, rest = name.partition(".")
        children[child] |= words_of(rest.rpartition(".")[0])
        if rest.endswith(("A_log", "dt_bias")):
            children[child].add("dt")
    mixers = {mixer for child, inner in children.items() if (mixer := _mixer(words_of(child), inner))}
    kind = "hybrid" if "attention" in mixers and len(mixers) > 1 else min(mixers, default="mlp")
    has_experts = any((words_of(child) | inner) & _EXPERTS for child, inner in children.items())
    return f"{kind}_moe" if has_experts else kind


def _mixer(own: frozenset[str], inner: Set[str]) -> str:
    """What mixes tokens in a module of a layer, by the words of its name and of what it contains; empty for nothing."""
    if own & _LINEAR or inner & {"rg", "lru"}:
        return "linear"
    if (own | inner) & _STATE_SPACE:
        return "mamba"
    return "attention" if inner and (own | inner) & _ATTENTION else ""  # a norm after attention contains no module


def windowed_layers(config: Mapping[str, Any], num_layers: int) -> frozenset[int]:
    """The layers whose attention sees a window only, as far as the config lists them."""
    for part in decoder_configs(dict(config)):
        for key in LAYER_TYPE_KEYS:
            listed = part.get(key)
            if isinstance(listed, list) and len(listed) >= num_layers:
                found = [number for number, word in enumerate(listed[:num_layers]) if words_of(str(word)) & _WINDOWED]
                if found:
                    return frozenset(found)
        period = part.get(PERIOD_KEY)
        if isinstance(period, int) and period > 1 and part.get("sliding_window"):
            return frozenset(number for number in range(num_layers) if (number + 1) % period)
    return frozenset()
