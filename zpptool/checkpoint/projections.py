# SPDX-License-Identifier: Apache-2.0
"""Find out on which side of the layers a projection stands whose name fits both.

`embedding_proj_layer` maps embeddings to the hidden size in one model and the last hidden state to a vector for
retrieval in another. Shapes decide where they can: a module that takes the hidden size and gives another follows the
layers, one that takes another and gives the hidden size precedes them. Otherwise the config decides: a size it gives to
its vectors, or an architecture that is named after what it does with the last hidden state.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.roles import PROJECTS_IN, PROJECTS_OUT, Role, words_of

_READS_THE_LAST_STATE = re.compile(r"Retriev|Rank|Reward|Embedding|Similarity|Classification|ValueHead|Col[A-Z]")
"""Architectures that turn the last hidden state into a vector or a score."""
_VECTOR_WORDS = frozenset({"embedding", "projection", "projector", "retrieval", "colbert", "output"})


class Evidence(NamedTuple):
    """The side of one module as its shapes and the config show it; None where they do not.

    Attributes:
        by_shape: the hidden size is on one side of it only, or the config states the size that it gives to vectors.
        by_config: the model's architecture is named after what it does with the last hidden state.
    """

    by_shape: Role | None = None
    by_config: Role | None = None


def projection_evidence(tensors: Collection[TensorInfo], config: dict[str, Any]) -> Mapping[str, Evidence]:
    """Return the evidence for each module, by the name of its first component.

    Args:
        tensors: the tensors outside the layers, named relative to the path that they share with the layers.
        config: the parsed config.json.
    """
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    modules = {tensor.name.partition(".")[0] for tensor in tensors if len(tensor.shape) == 2}
    for tensor in tensors:
        if len(tensor.shape) == 2:
            shapes[_unnumbered(tensor.name)].append(tensor.shape)
    return {module: _evidence(shapes[_unnumbered(module)], config) for module in modules}


def _unnumbered(name: str) -> str:
    """Return the first component without digits at its end: `linear1` and `linear2` belong together."""
    return name.partition(".")[0].rstrip("0123456789")


def _evidence(shapes: list[tuple[int, ...]], config: dict[str, Any]) -> Evidence:
    stated_size = text_config(config).get("hidden_size", config.get("hidden_size"))
    hidden = stated_size if isinstance(stated_size, int) else None
    given, taken = {shape[0] for shape in shapes}, {shape[1] for shape in shapes}
    stated = any(map(_READS_THE_LAST_STATE.search, _architectures(config)))
    by_config = PROJECTS_OUT if stated else None
    if given & (_vector_sizes(config) - {hidden}):
        return Evidence(PROJECTS_OUT, by_config)
    if (hidden in taken) == (hidden in given):
        return Evidence(None, by_config)
    return Evidence(PROJECTS_OUT if hidden in taken else PROJECTS_IN, by_config)


def _architectures(config: dict[str, Any]) -> list[str]:
    found = config.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _vector_sizes(config: dict[str, Any]) -> set[int]:
    """Return the sizes that the config gives to output vectors (`embedding_dim`, `projection_dim`)."""
    return {
        value
        for key, value in config.items()
        if type(value) is int and "dim" in (words := words_of(key)) and words & _VECTOR_WORDS
    }
