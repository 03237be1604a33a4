# SPDX-License-Identifier: Apache-2.0
"""Write tiny checkpoints without torch, with the names, dtypes and shapes of published models.

The bytes of a tensor are random but follow from its name, so that the same call makes the same checkpoint.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpptool.checkpoint.split import split_checkpoint

if TYPE_CHECKING:
    import pytest

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex

VOCAB, HIDDEN = 48, 8
BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "U8": 8, "I64": 64, "F4": 4, "BOOL": 8}

Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape by tensor name."""

LLAMA_LAYER = {
    "self_attn.q_proj.weight": ("BF16", (HIDDEN, HIDDEN)),
    "mlp.up_proj.weight": ("BF16", (2 * HIDDEN, HIDDEN)),
    "input_layernorm.weight": ("F32", (HIDDEN,)),
}


def layered(prefix: str, layers: int, of_one: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> Kinds:
    """The tensors of `layers` layers, with Llama's tensors by default."""
    parts = LLAMA_LAYER if of_one is None else of_one
    return {f"{prefix}.{layer}.{name}": kind for layer in range(layers) for name, kind in parts.items()}


def llama(layers: int = 4, *, tied: bool = False, root: str = "model.") -> Kinds:
    """The tensors of a Llama: embedding, layers, norm, and a head unless it is tied."""
    kinds: Kinds = {f"{root}embed_tokens.weight": ("BF16", (VOCAB, HIDDEN))}
    kinds |= layered(f"{root}layers", layers)
    kinds[f"{root}norm.weight"] = ("BF16", (HIDDEN,))
    if not tied:
        kinds["lm_head.weight"] = ("BF16", (VOCAB, HIDDEN))
    return kinds


def llama_config(layers: int = 4, **more: Any) -> dict[str, Any]:
    """The config of a `llama` model."""
    sizes = {"num_hidden_layers": layers, "vocab_size": VOCAB, "hidden_size": HIDDEN}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **more}


def index_of(
    kinds: Kinds, config: dict[str, Any] | None = None, aliases: Mapping[str, str] | None = None
) -> CheckpointIndex:
    """Return the index of a checkpoint that is not written, with tensors of their true sizes."""
    file = Path("model.safetensors")
    tensors = {
        name: TensorInfo(name, dtype, tuple(shape), file, 0, math.prod(shape) * BITS[dtype] // 8)
        for name, (dtype, shape) in kinds.items()
    }
    config = llama_config() if config is None else config
    return CheckpointIndex(Path("somewhere"), config, tensors, (), aliases=dict(aliases or {}))


def content(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Return the bytes of a tensor, derived from its name."""
    return random.Random(name).randbytes(math.prod(shape) * BITS[dtype] // 8)


def write_safetensors(path: Path, kinds: Kinds, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file without zpptool: length, JSON padded to a multiple of eight bytes, tensor bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for name, (dtype, shape) in kinds.items():
        own = content(name, dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(own)]}
        body += own
    raw = json.dumps(header).encode()
    write_raw(path, raw + b" " * (-len(raw) % 8), body)


def write_raw(path: Path, header: Any, body: bytes = b"") -> None:
    """Write a file with this header, valid or not, and these bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def write_checkpoint(
    directory: Path, kinds: Kinds | None = None, config: dict[str, Any] | None = None, *, shards: int = 1
) -> Path:
    """Write a checkpoint with a tokenizer and a folder of code, in one file or several shards with an index."""
    kinds = llama() if kinds is None else kinds
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(llama_config() if config is None else config, indent=2))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "code").mkdir(exist_ok=True)
    (directory / "code" / "modeling.py").write_text("# model code\n")
    if shards == 1:
        write_safetensors(directory / "model.safetensors", kinds, {"format": "pt"})
        return directory
    names, weight_map = list(kinds), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_safetensors(directory / file, {name: kinds[name] for name in own}, {"format": "pt", "shard": file})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_sparse(directory: Path, tensor_bytes: int, *, layers: int = 4) -> Path:
    """Write a checkpoint of sparse files, so that large tensors take no disk space."""
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in ("attn", "mlp")]
    starts = [place * tensor_bytes for place in range(len(names))]
    header = {
        name: {"dtype": "U8", "shape": [tensor_bytes // 64, 64], "data_offsets": [start, start + tensor_bytes]}
        for name, start in zip(names, starts, strict=True)
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(llama_config(layers)))
    write_raw(directory / "model.safetensors", header)
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.truncate(stream.seek(0, 2) + len(names) * tensor_bytes)
    return directory


def written_llama(factory: pytest.TempPathFactory, layers: int) -> Path:
    """The directory of a written llama checkpoint with so many layers."""
    return write_checkpoint(factory.mktemp("full") / "model", llama(layers), llama_config(layers))


def split_into(factory: pytest.TempPathFactory, model: Path, *ranges: str) -> Path:
    """The directory of the stages that a checkpoint was split into."""
    out = factory.mktemp("split") / "stages"
    split_checkpoint(model, out, ranges=list(ranges))
    return out
