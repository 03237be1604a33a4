# SPDX-License-Identifier: Apache-2.0
"""Say of every file of a checkpoint that a split does not carry why not, and whether it is a part of the model.

A split carries the tensors of the weight files and the small files. Other files with weights can be needed as well:
modules that sentence-transformers applies after the model, dictionaries that model code loads, adapters. They are
recorded in the manifests and named by split, validate and join, or carried with `--aux`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from zpptool.checkpoint.header import HeaderFault, read_header
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.leftovers import is_leftover
from zpptool.checkpoint.smallfiles import DANGLING, LOOPING, WEIGHT_INDEX_SUFFIXES, SmallFiles
from zpptool.document import read_json
from zpptool.file_names import is_inner_path

TOO_LARGE = "too large for a tokenizer or config file"
MODULE = "a module that is applied after the model (sentence-transformers)"
ABSENT_MODULE = "named by modules.json, and not there"
ADAPTER = "an adapter to the model"
OTHER_TENSORS = "tensors that are not in the model's weight files"
DICTIONARY = "data that model code may load"
SECOND_COPY = "tensors under names that the weight files hold too"
OTHER_FORMAT = "the weights, or an index of them, in another format"
ORIGINAL = "the weights under the names of the model's own code"
TRAINING = "the state of a training run"

_PARTS = frozenset({DANGLING, LOOPING, TOO_LARGE, MODULE, ABSENT_MODULE, ADAPTER, OTHER_TENSORS, DICTIONARY})
_CARRIED = frozenset({TOO_LARGE, MODULE, ADAPTER, OTHER_TENSORS, DICTIONARY})
_MODULE_FOLDER = re.compile(r"\d+_\w+/.*")
_TRAINING_STATE = re.compile(r"(optimizer|scheduler|rng_state|training_args|scaler)[-_.\w]*\.(pt|pth|bin)")
_TRAINING_FOLDER = re.compile(r"checkpoint-\d+|global_step\d+|epoch[-_=]?\d+")
_COPY_FOLDER = re.compile(r"onnx|gguf|ggml|openvino|coreml|tflite|flax|tf|mlx", re.IGNORECASE)
_SAME_WEIGHTS = re.compile(r"(pytorch_model|model|tf_model|flax_model|rust_model|decoder_model)([-_.].*)?\.\w+")
_MAX_NAMED = 6
_MAX_MODULES_BYTES = 1024 * 1024


def left_out_files(index: CheckpointIndex, found: SmallFiles) -> dict[str, str]:
    """Return the files of a checkpoint that are neither its weight files nor small files: path to reason.

    Args:
        index: of the checkpoint.
        found: its files.
    """
    weights = {header.file.relative_to(index.directory).as_posix() for header in index.headers}
    reasons = {**found.unusable, **dict.fromkeys(found.large, TOO_LARGE)}
    for name in found.others:
        if name not in weights:
            reasons[name] = _reason(name, index)
    reasons |= dict.fromkeys(map(_shortened, found.leftovers), TRAINING)
    reasons |= dict.fromkeys(_absent_modules(index.directory), ABSENT_MODULE)
    return {_encodable(path): reason for path, reason in sorted(reasons.items())}


def _shortened(leftover: str) -> str:
    """Return the path of a leftover of training, or that of the folder of such files that it is in."""
    folder, slash, _rest = leftover.partition("/")
    return f"{folder}/" if slash and is_leftover(f"{folder}/config.json") else leftover


def _absent_modules(directory: Path) -> list[str]:
    """Return the folders that sentence-transformers' modules.json names and that do not exist."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    modules = read_json(path, _MAX_MODULES_BYTES, "list of modules")
    named = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return [name for name in named if isinstance(name, str) and is_inner_path(name) and not (directory / name).exists()]


def is_part(reason: str) -> bool:
    """Return whether a file that was left out for this reason can be a part of the model."""
    return reason in _PARTS


def is_carriable(reason: str) -> bool:
    """Return whether a file that was left out for this reason is carried with `--aux`."""
    return reason in _CARRIED


def parts_left_out(left_out: Mapping[str, str]) -> list[str]:
    """Return the paths of the files that can be a part of the model."""
    return [path for path, reason in left_out.items() if is_part(reason)]


def left_out_notes(left_out: Mapping[str, str]) -> list[str]:
    """Return a sentence for the user for each reason, with its paths; `leftovers` has the one on training."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for path, reason in left_out.items():
        if reason != TRAINING:
            by_reason[reason].append(path)
    return [
        f"left out {_listed(paths)}: {reason}{'; --aux carries it' if is_carriable(reason) else ''}"
        for reason, paths in by_reason.items()
    ]


def _encodable(path: str) -> str:
    """Return a path as UTF-8 can express it: other bytes in a file name are escaped."""
    return path.encode(errors="backslashreplace").decode()


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _MAX_NAMED} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(paths[:_MAX_NAMED]) + more


def _reason(path: str, index: CheckpointIndex) -> str:
    *folders, name = path.split("/")
    if _TRAINING_STATE.fullmatch(name) or any(map(_TRAINING_FOLDER.fullmatch, folders)):
        return TRAINING
    if name.startswith("adapter"):
        return ADAPTER
    if name.startswith("consolidated") or folders[:1] == ["original"]:
        return ORIGINAL
    if name.endswith((".gguf", ".ggml", *WEIGHT_INDEX_SUFFIXES)) or any(map(_COPY_FOLDER.fullmatch, folders[:1])):
        return OTHER_FORMAT
    if _MODULE_FOLDER.fullmatch(path):
        return MODULE
    if name.endswith(".safetensors"):
        return SECOND_COPY if not folders and _holds_only(path, index) else OTHER_TENSORS
    if _SAME_WEIGHTS.fullmatch(name):
        return OTHER_TENSORS if folders else OTHER_FORMAT
    return DICTIONARY


def _holds_only(path: str, index: CheckpointIndex) -> bool:
    """Return whether a safetensors file holds only tensors that the model's weight files hold too."""
    try:
        names: Iterable[str] = [tensor.name for tensor in read_header(index.directory / path).tensors]
    except HeaderFault:
        return False
    return all(name in index.tensors for name in names)
