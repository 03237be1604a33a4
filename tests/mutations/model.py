# SPDX-License-Identifier: Apache-2.0
"""The small model that faults are injected into."""

from __future__ import annotations

from pathlib import Path

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.5,
}  # fmt: skip


def small_model(directory: Path) -> Path:
    """A Llama of four layers with random weights, lively enough that its answers are not one token repeated."""
    import torch
    from conftest import _byte_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_hidden_layers=4, tie_word_embeddings=True, **SIZES)
    model = directory / "model"
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(model)
    _byte_tokenizer().save_pretrained(model)
    return model
