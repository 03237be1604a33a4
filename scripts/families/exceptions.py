# SPDX-License-Identifier: Apache-2.0
"""Changes of config values, by model type, where tiny sizes that are chosen by name do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Change = Callable[[dict[str, Any]], dict[str, Any]]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MIXED = ["sliding_attention", "full_attention"] * 3
_DBRX_ATTENTION = ("attn_pdrop", "clip_qkv", "kv_n_heads", "rope_theta")
_DBRX_FFN = ("ffn_act_fn", "ffn_hidden_size", "moe_num_experts", "moe_top_k", "moe_jitter_eps", "moe_loss_weight")


def _set(**changes: Any) -> Change:
    return lambda values: {**values, **changes}


def _sections(*sections: int) -> Change:
    """Rotary settings of a model with positions in time, height and width."""
    return lambda values: {
        **values,
        "rope_parameters": {**_ROPE, **(values.get("rope_parameters") or {}), "mrope_section": list(sections)},
    }


def _dbrx(values: dict[str, Any]) -> dict[str, Any]:
    attention, ffn = values["attn_config"], values["ffn_config"]
    return {
        **values,
        "attn_config": {
            **{key: attention[key] for key in _DBRX_ATTENTION if key in attention},
            "rope_theta": 10000.0,
            "clip_qkv": 8.0,
        },
        "ffn_config": {key: ffn[key] for key in _DBRX_FFN if key in ffn},
    }


_GRANITE = "granite4_vision_text"
_SMALL_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
_HYBRID = ["linear_attention", "hybrid"] * 3
_COMPASS_ROPE = {**_ROPE, "mrope_section": [3, 3, 2]}
_INDEXER = {
    "indexer_compress_ratio": 2, "indexer_budget": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
}  # fmt: skip

EXCEPTIONS: dict[str, Change] = {
    "bailing_hybrid": _set(num_expert_group=1),
    "bamba": _set(mamba_d_head=32, mamba_n_heads=4, attn_layer_indices=[2, 5]),
    "chameleon": _set(vocabulary_map={"<image>": 310}),
    "cohere_compass_text": _set(
        layer_types=_MIXED, rope_parameters={"full_attention": _COMPASS_ROPE, "sliding_attention": _COMPASS_ROPE}
    ),
    "dbrx": _dbrx,
    "deepseek_ocr2_text": _set(
        mlp_layer_types=["dense"] + ["sparse"] * 5, num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1
    ),
    "deepseek_v2": _set(num_experts_per_tok=2, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1),
    "diffusion_gemma": lambda values: {**values, "vision_config": {"model_type": "gemma4_vision", **_SMALL_TOWER}},
    "diffusion_gemma_text": _set(num_experts=4, top_k_experts=2, moe_intermediate_size=32),
    "dory": _set(n_input_layers=2, n_recurrent_layers=2, n_output_layers=2),
    "dots3_note_audio_encoder": _set(adapter_input_size=64),
    "dots3_note_vision_encoder": _set(adapter_in_dim=64),
    "dots1": _set(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1),
    "emu3": _set(vocabulary_map={"<image>": 310, "<|extra_200|>": 311}),
    "ernie4_5_vl_moe_text": _sections(3, 3, 2),
    "falcon_h1": _set(mamba_d_head=16, mamba_n_heads=4, mamba_d_ssm=64),
    "gemma3n_text": _set(
        layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], intermediate_size=128, laurel_rank=8,
        rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE},
    ),
    "glm4v_text": _sections(4, 2, 2),
    "glm4v_moe_text": _sections(2, 1, 1),
    "glm5_next_text": _set(qk_rope_head_dim=0, head_dim=0),
    "glm_ocr_text": _sections(4, 2, 2),
    "gpt_neo": _set(attention_types=[[["global", "local"], 3]]),
    "granite4_vision": lambda values: {
        **values, "text_config": {**values["text_config"], "model_type": _GRANITE}, "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
    },
    "granitemoehybrid": _set(
        mamba_d_head=32, mamba_n_heads=4, num_local_experts=4, layer_types=["mamba", "mamba", "attention"] * 2
    ),
    "hy_v4_vl_text": _sections(2, 1, 1),
    "hunyuan_vl_text": _sections(2, 2, 2, 2),
    "inkling2_text": _set(unpadded_vocab_size=320),
    "inkling2_loop_text": _set(unpadded_vocab_size=320),
    "jamba": _set(attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2),
    "lfm2_moe": _set(layer_types=["conv", "full_attention"] * 3),
    "mamba2": _set(head_dim=32, num_heads=4, n_groups=1),
    "mistral4": _set(rope_parameters=_ROPE),
    "molmo2_adapter": _set(vision_feature_layer=[5, 3]),
    "muse_spark_audio": _set(num_hidden_layers=4),
    "nemotron_h": _set(n_groups=2, mamba_num_heads=4, mamba_head_dim=32),
    "paddleocr_vl_text": _sections(4, 2, 2),
    "qwen2_vl_text": _sections(4, 2, 2),
    "qwen2_5_vl_text": _sections(4, 2, 2),
    "qwen2_5_omni_text": _sections(4, 2, 2),
    "qwen4_exp_text": _set(**_INDEXER),
    "reformer": _set(
        is_decoder=True, num_buckets=4, axial_pos_shape=[8, 16], axial_pos_embds_dim=[32, 32],
        attn_layers=["local", "lsh"] * 3,
    ),
    "step3p5": _set(sliding_window=8),
    "wavtokenizer": _set(codebook_dim=64),
    "xlm": _set(emb_dim=64, max_position_embeddings=128, is_decoder=True, causal=True),
    "xlstm": _set(qk_dim_factor=1.0),
    "xmod": _set(default_language="en_XX"),
    "zamba": _set(
        num_key_value_heads=4, attention_head_dim=32, attention_hidden_size=128, n_mamba_heads=2,
        layers_block_type=_HYBRID,
    ),
    "zamba2": _set(
        layers_block_type=_HYBRID, hybrid_layer_ids=[1, 3, 5], num_mem_blocks=1, num_key_value_heads=4, n_mamba_heads=4,
        attention_head_dim=32, attention_hidden_size=128, mamba_headdim=32,
    ),
}  # fmt: skip

VLLM_EXCEPTIONS: dict[str, Change] = {
    "afmoe": _set(score_func="sigmoid", route_norm=True, n_group=1, topk_group=1),
    "bamba": _set(mamba_n_heads=8),
    "bloom": _set(hidden_size=128),
    "deepseek_v3": _set(topk_method="noaux_tc"),
    "falcon": _set(ffn_hidden_size=512),
    "glm4_moe": _set(head_dim=32),
    "glm4_moe_lite": _set(first_k_dense_replace=1),
    "gpt_bigcode": _set(num_key_value_heads=1),
    "granitemoehybrid": _set(mamba_n_heads=8),
    "hy_v3": _set(first_k_dense_replace=1),
    "inkling_text": _set(padded_vocab_size=320),
    "laguna": _set(num_attention_heads_per_layer=[4] * 6),
    "lfm2": _set(block_dim=128, conv_dim=128),
    "llama4_text": _set(attention_chunk_size=128),
    "longcat_flash": _set(mla_scale_q_lora=True, mla_scale_kv_lora=True),
    "mamba2": _set(num_heads=8),
    "mimo_v2_flash": _set(hybrid_layer_pattern=[0, 1, 1, 1, 1, 0], moe_layer_freq=[0, 1, 1, 1, 1, 1]),
    "minimax_m2": _set(rotary_dim=16),
    "nemotron_h": _set(layers_block_type=["linear_attention", "full_attention", "mlp"] * 2),
    "qwen4_exp_text": _set(indexer_head_dim=32),
}
"""Beyond `EXCEPTIONS`, where vLLM is to run the model: its heads are larger, and it reads more from a config."""
