# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint that every stage carries whole: configs, tokenizer, chat template, model code.

They are all files that are neither weights nor leftovers of a download, in subfolders too. Symbolic links, as the
Hugging Face cache has them, are read through.
"""

from __future__ import annotations

import os
from pathlib import Path

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz",
    ".tflite", ".ot",
)  # fmt: skip
WEIGHT_INDEX_SUFFIXES = tuple(f"{suffix}.index.json" for suffix in WEIGHT_SUFFIXES)
STAGE_FILE = "zpp-stage.json"
MAX_SMALL_BYTES = 256 * 1024 * 1024
"""Larger than any tokenizer; a larger file is data that no engine loads with a model."""


def small_files(directory: Path) -> tuple[list[str], list[str]]:
    """The small files of a checkpoint, and the files that are too large to be one.

    Returns:
        paths relative to `directory`, with slashes, sorted.
    """
    small: list[str] = []
    large: list[str] = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__pycache__")
        for name in names:
            path = Path(folder, name)
            if not _carried(name) or not path.is_file():
                continue
            kept = small if path.stat().st_size <= MAX_SMALL_BYTES else large
            kept.append(path.relative_to(directory).as_posix())
    return sorted(small), sorted(large)


def is_small_name(path: str) -> bool:
    """Whether a file of this path in a checkpoint is one of them, if it is not too large."""
    *folders, name = path.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return not hidden and _carried(name)


def _carried(name: str) -> bool:
    return not (name.startswith(".") or name == STAGE_FILE or name.endswith(WEIGHT_SUFFIXES + WEIGHT_INDEX_SUFFIXES))
