# SPDX-License-Identifier: Apache-2.0
"""The bytes of every possible stage are those that a split assigns to it."""

from __future__ import annotations

import pytest
from checkpoints import LLAMA_LAYER, Kinds, index_of, layered, llama, llama_config

from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.partition import LayerRange
from zpptool.planner.weights import stage_weights


def uneven(layers: int) -> Kinds:
    kinds = llama(layers)
    kinds |= {f"model.layers.{layer}.mlp.down_proj.weight": ("BF16", (8, 3 * layer + 1)) for layer in range(layers)}
    return kinds


def zamba() -> Kinds:
    """A block that is stored with its first layer, and that several layers share."""
    mamba = {"mamba.in_proj.weight": ("BF16", (16, 8)), "input_layernorm.weight": ("F32", (8,))}
    hybrid = {f"mamba_decoder.{name}": kind for name, kind in mamba.items()}
    kinds = {"model.embed_tokens.weight": ("BF16", (48, 8)), "model.final_layernorm.weight": ("BF16", (8,))}
    for layer in range(6):
        own = {**hybrid, "linear.weight": ("BF16", (8, 8))} if layer in (1, 3, 5) else mamba
        kinds |= {f"model.layers.{layer}.{name}": kind for name, kind in own.items()}
    kinds["model.layers.1.shared_transf.self_attn.q_proj.weight"] = ("BF16", (8, 16))
    return kinds


@pytest.mark.parametrize(
    ("kinds", "config", "aliases"),
    [
        (llama(5), llama_config(5), {}),
        (llama(5, tied=True), llama_config(5, tie_word_embeddings=True), {}),
        (uneven(6), llama_config(6), {}),
        (llama(4) | layered("model.layers", 1, LLAMA_LAYER), llama_config(4), {}),
        (zamba(), llama_config(6, tie_word_embeddings=True), {}),
        (llama(4, tied=True), llama_config(4), {"lm_head.weight": "model.embed_tokens.weight"}),
        (llama(4), llama_config(4), {"model.layers.3.mlp.gate.weight": "model.layers.1.mlp.up_proj.weight"}),
    ],
    ids=["llama", "tied", "uneven", "again", "zamba", "second name of the embedding", "second name in another layer"],
)
@pytest.mark.parametrize("itemsize", [None, 4])
def test_every_stage_of_every_cut_has_the_bytes_of_a_split(
    kinds: Kinds, config: dict[str, object], aliases: dict[str, str], itemsize: int | None
) -> None:
    index = index_of(kinds, config, aliases)
    structure = infer_structure(index)
    weights = stage_weights(index, structure, itemsize)
    count = structure.num_layers
    assert weights.num_layers == count
    for first in range(count):
        for second in range(first + 1, count + 1):
            bounds = sorted({0, first, second, count})
            partition = tuple(LayerRange(bounds[n], bounds[n + 1]) for n in range(len(bounds) - 1))
            names = assign(structure, partition).stages[bounds.index(first)]
            sizes = {"BF16": itemsize or 2, "F32": 4}
            stored = {"BF16": 2, "F32": 4}
            expected = sum(
                index.tensors[name].nbytes // stored[index.tensors[name].dtype] * sizes[index.tensors[name].dtype]
                for name in names
            )
            assert weights.bytes[first][second] == expected


def test_layers_that_share_state_are_not_cut_apart() -> None:
    config = llama_config(6, num_kv_shared_layers=2)
    index = index_of(llama(6), config)
    weights = stage_weights(index, infer_structure(index))
    assert weights.cuts < frozenset(range(7))
    assert all(weights.joined[layer] for layer in range(6) if layer not in weights.cuts)
