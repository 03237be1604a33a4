# SPDX-License-Identifier: Apache-2.0
"""A config's sizes become small together, and nothing that depends on the number of a layer changes."""

from __future__ import annotations

from typing import Any

from zpptool.engines.transformers.proof.sizes import small_values

LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "hidden_act": "silu", "use_cache": True,
}  # fmt: skip


def test_heads_times_their_size_stays_the_width() -> None:
    small = small_values(LLAMA_70B)
    assert (small["num_attention_heads"], small["head_dim"], small["hidden_size"]) == (4, 16, 64)
    assert small["num_key_value_heads"] == 2, "several heads share keys, as before"
    assert small["intermediate_size"] == 28672 // (16 * 8)
    assert small["vocab_size"] == 320
    assert small["eos_token_id"] == [1]


def test_what_depends_on_layers_is_kept() -> None:
    kept = {
        "num_hidden_layers": 80, "layer_types": ["full_attention", "sliding_attention"] * 40, "max_window_layers": 28,
        "full_attention_interval": 4, "first_k_dense_replace": 3, "mlp_only_layers": [0, 3], "num_kv_shared_layers": 10,
        "attn_layer_indices": [9, 18, 27], "n_layer": 48,
    }  # fmt: skip
    small = small_values({**LLAMA_70B, **kept})
    assert {name: small[name] for name in kept} == kept


def test_all_kinds_of_heads_are_divided_alike() -> None:
    mixed = {
        **LLAMA_70B, "mamba_n_heads": 128, "mamba_d_head": 64, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    }  # fmt: skip
    small = small_values(mixed)
    assert small["mamba_n_heads"] * small["mamba_d_head"] == 128 * 64 * small["hidden_size"] // 8192
    assert small["linear_num_value_heads"] == 2 * small["linear_num_key_heads"]


def test_heads_that_divide_by_nothing_become_four() -> None:
    falcon = {"hidden_size": 4544, "num_attention_heads": 71, "num_kv_heads": 1, "ffn_hidden_size": 4 * 4544}
    small = small_values(falcon)
    assert (small["num_attention_heads"], small["num_kv_heads"]) == (4, 1)
    assert small["hidden_size"] % 4 == 0
    assert small["ffn_hidden_size"] == 4 * small["hidden_size"]


def test_a_width_that_does_not_divide_is_rounded_to_aligned_rows() -> None:
    assert small_values({**LLAMA_70B, "moe_intermediate_size": 1000})["moe_intermediate_size"] == 8


def test_a_model_without_heads_gets_a_small_width() -> None:
    small = small_values({"hidden_size": 4096, "intermediate_size": 8192, "state_size": 16, "time_step_rank": 256})
    assert small == {"hidden_size": 64, "intermediate_size": 128, "state_size": 8, "time_step_rank": 16}


def test_rotary_settings_fit_the_smaller_head() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 64, "mrope_section": [24, 20, 20]}
    small = small_values({**LLAMA_70B, "rope_parameters": rope})["rope_parameters"]
    assert len(small["short_factor"]) == small_values(LLAMA_70B)["head_dim"] // 2 == sum(small["mrope_section"])
    assert small["rope_type"] == "longrope"


def test_a_tower_is_divided_by_its_own_heads_and_parts_without_heads_by_the_models() -> None:
    tower = {"model_type": "vision", "hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27}
    small = small_values({**LLAMA_70B, "vision_config": tower, "ffn_config": {"ffn_hidden_size": 28672}})
    assert small["vision_config"]["hidden_size"] % small["vision_config"]["num_attention_heads"] == 0
    assert small["vision_config"]["num_hidden_layers"] == 27
    assert small["ffn_config"]["ffn_hidden_size"] == small["intermediate_size"]


def test_what_is_small_already_stays() -> None:
    tiny = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    assert small_values(tiny) == tiny
