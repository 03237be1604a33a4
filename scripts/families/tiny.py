# SPDX-License-Identifier: Apache-2.0
"""A tiny config for any model class of transformers: its default config with every size made small by its name.

A model that mixes layer types, experts or towers mixes them here too. All towers get as many layers as the decoder,
which makes them hardest to tell apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from families.exceptions import EXCEPTIONS, VLLM_EXCEPTIONS, Change

LAYERS = 6
_LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks", "num_decoder_layers",
    "num_encoder_layers", "encoder_layers", "decoder_layers", "layers", "num_hidden_blocks"
)  # fmt: skip
Sizes = tuple[tuple[str, int], ...]
_SIZES: Sizes = (
    (r"^(vocab_size|text_vocab_size|padded_vocab_size|vocab_size_per_layer_input|ctx_len)$", 320),
    (r"position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|context_length|max_\w+_positions", 128),
    (r"(num_key_value_heads|num_kv_heads|n_kv_heads|num_query_groups|multi_query_group_num|linear_num_key_heads)$", 2),
    (r"(num_attention_heads|num_heads|n_heads?|attention_heads|mamba_num_heads|linear_num_value_heads)$", 4),
    (r"(qk_nope_head_dim|qk_rope_head_dim|v_head_dim|rotary_dim|qk_head_dim)$", 8),
    (r"(head_dim|attention_head_size|d_head|head_size|d_kv|kv_channels|lora_rank|dt_rank|time_step_rank)$", 16),
    (r"(state_size|d_state)$", 8),
    (r"^(num_experts|num_expert_group|n_experts)$|routed_experts|num_local_experts|moe_num_experts?", 4),
    (r"(experts_per_tok(en)?|moe_topk|moe_top_k|^top_k|experts_top_k|moe_k|activated_experts|selected_experts)$", 2),
    (r"(n_group|topk_group)$", 1),
    (r"intermediate_size|ffn_dim|n_inner|ffn_hidden_size|mlp_hidden|d_ff|inner_size|dim_ff|dff|ffn_size", 128),
    (r"(hidden_size_per_layer_input)", 16),
    (r"hidden_size|d_model|n_embd|emb_dim|embed_dim|^dim$|hidden_dim|embedding_size|d_embed|width|projection_dim|proj_dim"
     r"|embedding_dim|lru_width|d_inner|out_channels$|hidden_channels", 64),
    (r"(image_size|input_size)$", 56),
    (r"patch_size$", 14),
    (r"(sliding_window|attention_window_size|window_size|attention_chunk_size|chunk_size)$", 8),
)  # fmt: skip
"""Patterns of the names of sizes, and the tiny sizes; the first pattern that matches counts."""
_VLLM_SIZES: Sizes = (
    (r"^kv_lora_rank$", 512),
    (r"^linear_(key|value)_head_dim$", 128),
    (r"qk_rope_head_dim$", 64),
    (r"(qk_nope_head_dim|v_head_dim)$", 128),
    (r"qk_head_dim$", 192),
    (r"rotary_dim$", 32),
    (r"(head_dim|attention_head_size|d_head|head_size|d_kv|kv_channels)$", 32),
    (r"(state_size|d_state)$", 16),
    (r"^(hidden_size|d_model|n_embd|word_embed_proj_dim|embedding_size|dim|hidden_dim|lru_width)$", 128),
)
"""Tried before `_SIZES` for models that vLLM runs: 32 is the smallest head size of its attention on a CPU
(`CPUAttentionBackend.get_supported_head_sizes`), and latent attention has DeepSeek's size only."""


@dataclass(frozen=True)
class Variant:
    """Another way of making a config tiny: sizes that are tried before `_SIZES`, and exceptions beside `EXCEPTIONS`.

    With larger heads, the parts of a head that rotate with time, height and width grow in proportion.
    """

    sizes: Sizes = ()
    exceptions: Mapping[str, Change] = field(default_factory=dict)
    head_scale: int = 1


PLAIN = Variant()
VLLM = Variant(_VLLM_SIZES, VLLM_EXCEPTIONS, head_scale=2)
_DROPPED = ("transformers_version", "_attn_implementation", "architectures", "id2label", "label2id", "_name_or_path")
_FIRST_SPECIAL_TOKEN = 300
_INITIALISER = 0.3
"""Weights large enough that every layer affects the tokens."""


def tiny_config(config_class: type[Any], variant: Variant = PLAIN) -> Any:
    """A config of this class with tiny sizes.

    Args:
        config_class: the class.
        variant: `VLLM` for a model that vLLM runs.

    Raises:
        Exception: any error of the class, for sizes that do not fit together.
    """
    values = _shrink(config_class().to_dict(), (*variant.sizes, *_SIZES))
    values["model_type"] = config_class.model_type
    values = _with_larger_sections(_with_exceptions(values, variant.exceptions), variant.head_scale)
    del values["model_type"]
    return config_class(**values)


def _shrink(values: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    count = next((values[key] for key in _LAYER_COUNTS if isinstance(values.get(key), int)), None)
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in _DROPPED or key == "per_layer_config":
            continue
        if isinstance(value, list | tuple) and (len(value) == count or "type" in key) and len(value) > LAYERS:
            small[key] = _first_of_each_kind(list(value))
        elif value is None and key == "head_dim" and "num_attention_heads" in values:
            small[key] = _small_value(key, 10**6, sizes)
        elif value is None and key == "num_key_value_heads":
            small[key] = 4
        elif key == "initializer_range":
            small[key] = _INITIALISER
        else:
            small[key] = _small_value(key, value, sizes)
    if "qk_rope_head_dim" in small and "head_dim" in small:
        small["head_dim"] = small["qk_rope_head_dim"]
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _small_value(key: str, value: Any, sizes: Sizes) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(inner, str) for inner in value):
            return value
        return _small_rope(value) if "rope" in key else _shrink(value, sizes)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if re.search(r"(pad|bos|eos|sep|cls|unk|mask|decoder_start|forced_\w+)_token_id$", key):
        return value if value < _FIRST_SPECIAL_TOKEN else 1
    if re.search(r"(token_id|_index)$", key) and value >= _FIRST_SPECIAL_TOKEN:
        return _FIRST_SPECIAL_TOKEN + sum(map(ord, key)) % 19
    if key in _LAYER_COUNTS:
        return LAYERS
    for pattern, size in sizes:
        if re.search(pattern, key):
            return size if value > size or key.endswith(("heads", "n_head", "head_dim")) else value
    return value


def _small_rope(values: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings. The parts of a head that rotate with time, height and width must add up to half of it."""
    return {**values, "mrope_section": [4, 2, 2]} if "mrope_section" in values else values


def _first_of_each_kind(values: list[Any]) -> list[Any]:
    """As many entries as there are layers, including every kind of layer."""
    first = values[:LAYERS]
    if not all(isinstance(value, str) for value in values):
        return first
    missing = [kind for kind in dict.fromkeys(values) if kind not in first][:LAYERS]
    return first[: LAYERS - len(missing)] + missing


def _with_exceptions(values: dict[str, Any], more: Mapping[str, Change]) -> dict[str, Any]:
    inner = {
        key: _with_exceptions(value, more)
        if isinstance(value, dict) and isinstance(value.get("model_type"), str)
        else value
        for key, value in values.items()
    }
    kind = str(values.get("model_type"))
    for exceptions in (EXCEPTIONS, more):
        inner = exceptions.get(kind, lambda own: own)(inner)
    return inner


def _with_larger_sections(values: dict[str, Any], scale: int) -> dict[str, Any]:
    return {
        key: [part * scale for part in value]
        if key == "mrope_section"
        else _with_larger_sections(value, scale)
        if isinstance(value, dict)
        else value
        for key, value in values.items()
    }
