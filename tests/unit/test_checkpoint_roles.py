# SPDX-License-Identifier: Apache-2.0
"""Tensor names of published checkpoints, including old ones and remote code: each goes to the right stage of four."""

from __future__ import annotations

from pathlib import Path

import pytest
from published import FAMILIES, LAYERS

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.structure import infer_structure
from zpptool.partition import even_partition

EMBED, VECTOR, MATRIX = (48, 8), (8,), (4096, 4096)


def names_of(text: str, placeholder: str = "T") -> list[str]:
    """Return the names in `text`, with the placeholder replaced by numbers."""
    names = []
    for name in text.split():
        numbered = f".{placeholder}." in name
        names += [name.replace(f".{placeholder}.", f".{number}.") for number in range(LAYERS)] if numbered else [name]
    return names


def shape_of(name: str) -> tuple[int, ...]:
    """Return a shape: a vector for norms, the vocabulary's for embeddings and heads, else a large matrix."""
    words = name.replace(".", "_").split("_")
    if "norm" in name or {"ln", "freq", "bias"} & set(words):
        return VECTOR
    ends = ("embed", "embd", "wte", "wpe", "head", "output.weight", "output_layer", "transformer.ff_out")
    is_end = any(word in name for word in ends) and ".layers." not in name and "altup" not in name
    return EMBED if is_end else MATRIX


@pytest.mark.parametrize("name", FAMILIES)
def test_published_names_go_where_they_are_needed(name: str) -> None:
    family = FAMILIES[name]
    wanted = dict.fromkeys(names_of(family.first), (0,))
    wanted |= dict.fromkeys(names_of(family.last), (3,))
    wanted |= dict.fromkeys(names_of(family.both), (0, 3))
    wanted |= dict.fromkeys(names_of(family.every), (0, 1, 2, 3))
    for layer in range(LAYERS):
        wanted |= {f"{family.prefix}.{layer}.{name}": (layer,) for name in family.inside.split()}
    tensors = {}
    for tensor in wanted:
        shape = shape_of(tensor)
        nbytes = 64 * 2**20 if len(shape) > 1 else 16
        tensors[tensor] = TensorInfo(tensor, "BF16", shape, Path("model.safetensors"), 0, nbytes)
    config = {"vocab_size": 48, "hidden_size": 8, **family.config}
    structure = infer_structure(CheckpointIndex(Path("somewhere"), config, tensors, ()))
    assert structure.layer_prefix == family.prefix
    partition = even_partition(LAYERS, LAYERS)
    assert {tensor: structure.stages_of(tensor, partition) for tensor in tensors} == wanted
