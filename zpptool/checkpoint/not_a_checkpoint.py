# SPDX-License-Identifier: Apache-2.0
"""Say what a directory is that cannot be read as a checkpoint, and what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from zpptool.checkpoint.header import read_header
from zpptool.errors import ZppError, invalid_error
from zpptool.regular_file import read_regular

_ADAPTER_CONFIG = "adapter_config.json"
_MERGE = "Merge it into its base model (PEFT's merge_and_unload, then save_pretrained), and name the result."
_TO_SAFETENSORS = "load it with transformers' from_pretrained and write it with save_pretrained, as safetensors"
_FOREIGN = {
    ".bin": _TO_SAFETENSORS,
    ".gguf": "Split the safetensors checkpoint that the GGUF file was made from, or convert it: transformers' "
    "from_pretrained(..., gguf_file=NAME), then save_pretrained.",
    ".pth": "These are the model's own files before any conversion: use its Hugging Face checkpoint.",
    ".pt": _TO_SAFETENSORS,
    ".h5": "These are TensorFlow's weights: " + _TO_SAFETENSORS,
    ".msgpack": "These are Flax's weights: " + _TO_SAFETENSORS,
    ".onnx": "An ONNX graph cannot be split: use the checkpoint that it was exported from.",
    ".npz": "These are the arrays of an MLX or NumPy program: use the Hugging Face checkpoint of the model.",
}
_RANK = re.compile(r"(?:^|[-_.])(?:tp|mp|rank|tp_rank|mp_rank)[-_]?(\d+)(?=[-_.]|$)|^model(\d+)-mp\d+", re.IGNORECASE)
_ONE_RANK = re.compile(r"-TP-\d+\.|^model\d+-mp(?!1\.)\d+\.|^model-rank-\d+-part-\d+\.")
"""Names that are given to a rank's part only: such a file is no whole model even if it is alone."""
_ADAPTER_PART = re.compile(r"(^|[._])(lora|loha|lokr|dora|ia3)_")
_MAX_ADAPTER_CONFIG_BYTES = 1024 * 1024


def foreign_weights(directory: Path) -> ZppError | None:
    """Return the error for weights in a format that is not read; None if there are none."""
    if any(directory.glob("mp_rank_*")) or any(directory.glob("global_step*")):
        return invalid_error(
            f"{directory} is a training checkpoint (Megatron or DeepSpeed), not a Hugging Face one",
            "Convert it first, with the converter of the training framework or DeepSpeed's zero_to_fp32.py.",
        )
    if (directory / _ADAPTER_CONFIG).is_file() and not any(directory.glob("pytorch_model*.bin")):
        return adapter_fault(directory)
    for suffix, hint in _FOREIGN.items():
        if any(directory.glob(f"*{suffix}")):
            return invalid_error(f"{directory} holds {suffix} weights only, no safetensors", hint)
    return None


def adapter_fault(directory: Path) -> ZppError:
    """Build the error for an adapter, with the name of its base model if it is known."""
    base = None
    try:
        content = json.loads(read_regular(directory / _ADAPTER_CONFIG, _MAX_ADAPTER_CONFIG_BYTES, "adapter config"))
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    except (ZppError, OSError, ValueError, RecursionError):
        base = None  # only the name is unknown then
    of = f" for {base}" if isinstance(base, str) and base.isprintable() else ""
    return invalid_error(f"{directory} holds an adapter{of}, not a model", _MERGE)


def only_adapts(names: Collection[str]) -> bool:
    """Return whether all tensor names are those of an adapter (`lora_A`, `lora_up`, ...)."""
    return bool(names) and all(_ADAPTER_PART.search(name) for name in names)


def without_config(directory: Path) -> ZppError:
    """Build the error for a directory without config.json, with a guess at what the directory is instead."""
    none = f"{directory} holds no config.json"
    if any(directory.glob("stage_*/config.json")):
        return invalid_error(
            f"{none}: it is a split, not a checkpoint",
            "Name the original checkpoint, or restore it with zpptool join.",
        )
    if (directory / _ADAPTER_CONFIG).is_file():
        return adapter_fault(directory)
    if (directory / "snapshots").is_dir():
        return _cache_of_a_model(directory)
    if repositories := sorted(path.name for path in directory.glob("models--*")):
        return invalid_error(
            f"{none}: it is the cache of the Hugging Face Hub, which holds {len(repositories)} model(s)",
            f"Name the snapshot of one: {directory / repositories[0]}/snapshots/COMMIT; or its Hub id.",
        )
    if (directory / "params.json").is_file():
        return invalid_error(
            f"{none}: these are Mistral's own files, not the Hugging Face ones",
            "Download config.json and the model*.safetensors files of the same model.",
        )
    if (directory / "model_index.json").is_file():
        return invalid_error(
            f"{none}: it is a diffusers pipeline, not a language model",
            "Name a directory that holds a decoder-only language model.",
        )
    if below := sorted(path.parent for path in directory.glob("*/config.json")):
        one = "the checkpoint" if len(below) == 1 else f"one of the {len(below)} directories"
        return invalid_error(none, f"Name {one} in it that holds one, for example {below[0]}.")
    names = [name for file in sorted(directory.glob("*.safetensors"))[:1] for name in _tensor_names(file)]
    if only_adapts(names):
        return adapter_fault(directory)
    return invalid_error(none, "Name a Hugging Face checkpoint directory.")


def _cache_of_a_model(directory: Path) -> ZppError:
    commits = sorted(path.name for path in (directory / "snapshots").iterdir() if path.is_dir())
    main = ""
    try:
        main = read_regular(directory / "refs" / "main", 1024, "reference of the Hub cache").decode().strip()
    except (ZppError, OSError, ValueError):
        main = ""  # any other snapshot is named
    message = f"{directory} holds no config.json: it is the cache of one model of the Hugging Face Hub"
    if not commits:
        return invalid_error(f"{message}, with no snapshot in it", "Download the model, or name its Hub id.")
    commit = main if main in commits else commits[0]
    return invalid_error(message, f"Name the snapshot in it: {directory / 'snapshots' / commit}")


def not_a_directory(path: Path) -> ZppError:
    """Build the error for a path that is no directory."""
    hint = "Name a directory that holds a checkpoint."
    if path.suffix == ".gguf":
        hint = _FOREIGN[".gguf"]
    elif path.is_file():
        hint = f"Name the directory that holds it: {path.parent}"
    return invalid_error(f"{path} is not a directory", hint)


def no_safetensors(directory: Path, present: list[str]) -> ZppError:
    """Build the error for a directory whose safetensors files, if any, are not the weights of the model."""
    if any(name.startswith("consolidated") for name in present):
        return invalid_error(
            f"{directory} holds only Mistral's own consolidated*.safetensors, not the Hugging Face ones",
            "download the model*.safetensors files of the same model",
        )
    if any(name.startswith("adapter") for name in present):
        return adapter_fault(directory)
    below = sorted({path.parent.name for path in directory.glob("*/*.safetensors")})
    hint = f"Its folder {below[0]} holds some: move them beside config.json." if len(below) == 1 else None
    return invalid_error(
        f"{directory} holds no safetensors file", hint or "name a directory with the weights of the model"
    )


def presharded(directory: Path, names: Iterable[str]) -> ZppError | None:
    """Return the error for files each of which holds one tensor-parallel rank's part of the tensors; None if not so.

    Args:
        directory: of the checkpoint.
        names: of its safetensors files.
    """
    ranks: dict[str, str] = {}
    for name in sorted(names):
        match = _RANK.search(name.removesuffix(".safetensors"))
        if match and not name.startswith("adapter"):
            ranks.setdefault(match[1] or match[2], name)
    held = list(ranks.values())[:2]
    alone = len(held) == 1 and _ONE_RANK.search(held[0]) is not None
    if not alone and not (len(held) == 2 and _tensor_names(directory / held[0]) & _tensor_names(directory / held[1])):
        return None
    hint = (
        "Use a checkpoint with whole tensors, or merge the ranks first: concatenate each tensor along the dimension "
        "that was divided (output rows of q, k, v, gate and up; input columns of o and down)."
    )
    if "-mp" in held[0]:
        hint = "These are files of DeepSeek's convert.py: split the Hugging Face checkpoint that they were made from."
    parts = "the part of one rank" if alone else f"the parts of {len(ranks)} ranks, under the same tensor names"
    files = f"{held[0]} holds" if alone else f"{', '.join(held)} and so on hold"
    return invalid_error(f"{directory} is divided for tensor parallelism: {files} {parts}", hint)


def _tensor_names(file: Path) -> set[str]:
    return {tensor.name for tensor in read_header(file).tensors}


def quantised_by_mlx(directory: Path, config: dict[str, object], names: Iterable[str]) -> ZppError | None:
    """Return the error for weights that MLX has quantised; None if they are not."""
    quantised = config.get("quantization")
    if not isinstance(quantised, dict) or not {"group_size", "bits"} <= quantised.keys():
        return None
    if not any(name.endswith(".scales") for name in names):
        return None
    return invalid_error(
        f"{directory} holds weights that MLX quantised ({quantised['bits']} bits); vLLM and transformers cannot load "
        "them",
        "Split the checkpoint that they were made from, or dequantise them with mlx_lm.convert --dequantize.",
    )
