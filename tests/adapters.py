# SPDX-License-Identifier: Apache-2.0
"""Writes LoRA adapters with random weights, in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def write_adapter(directory: Path, model: Path, *, seed: int, strength: float = 0.05) -> Path:
    """Write an adapter of the query and value projections of every layer of the Llama at `model`."""
    directory.mkdir(parents=True)
    config = json.loads((model / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    outputs = {"q_proj": width, "v_proj": config["num_key_value_heads"] * (width // heads)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, out in outputs.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, width, generator=generator) * strength
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * strength
    save_file(tensors, directory / "adapter_model.safetensors")
    metadata = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "target_modules": list(outputs), "base_model_name_or_path": str(model),
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(metadata))
    return directory
