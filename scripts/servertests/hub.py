# SPDX-License-Identifier: Apache-2.0
"""A cache of the Hugging Face Hub in which every model that the tests name is the model of the run.

Tests load tokenizers and configurations by the hub's names. With HF_HOME at this directory and HF_HUB_OFFLINE=1 they
get those of the model that answers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

REVISION = "0" * 40
RANK = 8


def write_hub(directory: Path, model: Path, models: Iterable[str], adapters: Iterable[str]) -> Path:
    """Write the cache, if it is not there; returns the adapter's directory."""
    adapter = directory / "adapter"
    if not (adapter / "adapter_config.json").exists():
        write_adapter(adapter, model)
    for name in models:
        _link(directory, name, model)
    for name in adapters:
        _link(directory, name, adapter)
    return adapter


def write_adapter(directory: Path, model: Path) -> None:
    """A LoRA adapter of the query and value projections of a Llama, in PEFT's layout, with random numbers."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    outputs = {"q_proj": width, "v_proj": config["num_key_value_heads"] * (width // heads)}
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, out in outputs.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, width, generator=chance) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=chance) * 0.02
    save_file(tensors, directory / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "target_modules": list(outputs), "base_model_name_or_path": str(model),
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(described))


def _link(home: Path, name: str, target: Path) -> None:
    """A repository of the cache whose one snapshot has the files of a directory."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    for file in target.iterdir():
        link = snapshot / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
