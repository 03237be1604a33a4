# SPDX-License-Identifier: Apache-2.0
"""Layers that lack weights are refused by name, unless the config says why they lack them."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import HIDDEN, Kinds, index_of, layered, llama, llama_config

from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.errors import ZppError
from zpptool.partition import even_partition, parse_range

MATRIX = ("BF16", (HIDDEN, HIDDEN))
LAYER = {f"self_attn.{x}_proj.weight": MATRIX for x in "qkvo"} | {
    f"mlp.{x}_proj.weight": MATRIX for x in ("gate", "up", "down")
}


def model(layers: int = 5, without: tuple[str, ...] = (), layer: int = 3) -> Kinds:
    """Return a Llama, with some tensors of one layer missing."""
    kinds = {name: kind for name, kind in llama(layers).items() if ".layers." not in name}
    kinds |= layered("model.layers", layers, LAYER)
    for name in without:
        del kinds[f"model.layers.{layer}.{name}"]
    return kinds


def refusal(kinds: Kinds, **config: Any) -> str:
    with pytest.raises(ZppError) as caught:
        infer_structure(index_of(kinds, llama_config(5, **config)))
    return caught.value.message


ATTENTION = tuple(f"self_attn.{x}_proj.weight" for x in "qkvo")


@pytest.mark.parametrize(
    "without", [ATTENTION[1:3], ATTENTION[:1], ATTENTION[2:3], ("mlp.down_proj.weight",), ATTENTION]
)
@pytest.mark.parametrize("layer", [0, 3, 4])
def test_a_layer_that_lost_projections_is_refused(without: tuple[str, ...], layer: int) -> None:
    message = refusal(model(without=without, layer=layer))
    assert f"layer {layer} lacks {without[0].removesuffix('.weight')}" in message or (
        f"layer {layer} lacks self_attn.k_proj" in message
    )


def test_a_weight_of_which_only_the_bias_is_left_is_missed() -> None:
    kinds = {**model(without=("mlp.down_proj.weight",)), "model.layers.3.mlp.down_proj.bias": ("BF16", (HIDDEN,))}
    assert "layer 3 lacks mlp.down_proj" in refusal(kinds)


def test_keys_and_values_may_be_another_layers_if_the_config_says_so() -> None:
    kinds = model(without=ATTENTION[1:3])
    structure = infer_structure(index_of(kinds, llama_config(5, kv_reuse_group=[[2, 3]])))
    assert set(structure.joined) == {3}


def test_values_may_be_the_keys_if_the_config_says_so() -> None:
    kinds = model(without=ATTENTION[2:3])
    assert infer_structure(index_of(kinds, llama_config(5, attention_k_eq_v=True))).num_layers == 5


def test_layers_of_another_kind_may_have_other_modules() -> None:
    """As published: latent attention, linear attention and experts have some of the same names."""
    kinds = model(without=ATTENTION[1:3])
    kinds |= {"model.layers.3.self_attn.kv_a_proj.weight": MATRIX}
    assert infer_structure(index_of(kinds, llama_config(5))).joined == {}
    stated = llama_config(5, layer_types=["full", "full", "full", "linear", "full"])
    assert infer_structure(index_of(model(without=ATTENTION), stated)).num_layers == 5


NO_OP = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
BUSY = {"attention": {"no_op": False, "heads": 8}, "ffn": {"no_op": False}}


@pytest.mark.parametrize(
    "config",
    [
        {"block_configs": [BUSY, BUSY, NO_OP, BUSY, BUSY]},
        {"layer_kinds": ["full", "full", "identity", "full", "full"]},
        {"pruned_layers": [2]},
    ],
)
def test_a_layer_that_computes_nothing_has_no_tensors(config: dict[str, Any]) -> None:
    kinds = {name: kind for name, kind in model().items() if ".layers.2." not in name}
    structure = infer_structure(index_of(kinds, llama_config(5, **config)))
    assert structure.num_layers == 5
    assert "no tensor of layer 2" in structure.notes[0]
    assert assign(structure, even_partition(5, 2)).stages
    with pytest.raises(ZppError, match="stage 1 would hold no tensor: its layers 2-3 compute nothing"):
        assign(structure, tuple(map(parse_range, ("0-2", "2-3", "3-5"))))


def test_layers_without_tensors_are_named() -> None:
    kinds = {name: kind for name, kind in model().items() if ".layers.1." not in name and ".layers.2." not in name}
    assert "model.layers holds no tensor of layers 1, 2" in refusal(kinds)
    assert "holds no tensor of layers 1, 2" in refusal(kinds, block_configs=[BUSY] * 5)
