# SPDX-License-Identifier: Apache-2.0
"""The types of layers, from the names of published models and from shapes."""

from __future__ import annotations

import pytest
from checkpoints import HIDDEN, index_of, layered, llama, llama_config
from published import FAMILIES

from zpptool.checkpoint.layer_types import layer_types, type_by_names, windowed_layers
from zpptool.checkpoint.structure import infer_structure

NAMED = {
    "llama with legacy rotary buffers": "attention",
    "mixtral": "mlp_moe",  # the table lists no projection of its attention
    "llama, GPTQ": "mlp",  # the table lists one projection of a layer
    "deepseek-v3, FP8": "attention_moe",
    "gpt2": "attention",
    "bloom": "attention",
    "gpt-neox": "attention",
    "mpt": "attention",
    "dbrx": "attention_moe",
    "mamba": "mamba",
    "jamba": "mamba_moe",
    "qwen3-next with a prediction part": "linear_moe",
    "phi, remote code": "attention",
}


@pytest.mark.parametrize("family", NAMED)
def test_a_layer_is_named_after_what_it_is_made_of(family: str) -> None:
    assert type_by_names(FAMILIES[family].inside.split()) == NAMED[family]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("mamba.in_proj.weight mamba.A_log self_attn.q_proj.weight feed_forward.up_proj.weight", "hybrid"),
        ("mixer.in_proj.weight mixer.A_log norm.weight", "mamba"),
        ("mixer.q_proj.weight norm.weight", "attention"),
        ("mixer.up_proj.weight norm.weight", "mlp"),
        ("temporal_block.rg_lru.input_gate_weight mlp_block.up_proj.weight", "linear"),
        ("conv.in_proj.weight feed_forward.w1.weight", "linear"),
        ("self_attn.kv_b_proj.weight self_attn.q_norm.weight mlp.gate_proj.weight", "attention"),
        ("linear_attn.A_log linear_attn.in_proj_qkv.weight mlp.up_proj.weight", "linear"),
    ],
)
def test_names_of_other_mixers(names: str, kind: str) -> None:
    assert type_by_names(names.split()) == kind


def types(kinds: dict, config: dict) -> tuple[str, ...]:
    index = index_of(kinds, config)
    return layer_types(index, infer_structure(index))


def test_equal_layers_have_one_type() -> None:
    assert types(llama(4), llama_config(4)) == ("attention",) * 4


def test_layers_of_other_shapes_have_types_of_their_own() -> None:
    wide = layered("model.layers", 4)
    wide |= {f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", (4 * HIDDEN, HIDDEN)) for layer in (1, 2)}
    kinds = {**llama(4), **wide}
    assert types(kinds, llama_config(4)) == ("attention", "attention-2", "attention-2", "attention")


def test_layers_that_see_a_window_are_distinguished() -> None:
    listed = llama_config(4, layer_types=["sliding_attention", "full_attention"] * 2)
    assert types(llama(4), listed) == ("sliding_attention", "attention") * 2
    assert windowed_layers(llama_config(6, sliding_window=8, sliding_window_pattern=3), 6) == {0, 1, 3, 4}
    assert windowed_layers(llama_config(6, layer_types="all"), 6) == frozenset()
