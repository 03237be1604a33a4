# SPDX-License-Identifier: Apache-2.0
"""Index every tensor of a checkpoint directory (name, dtype, shape, location) from headers alone.

A `CheckpointIndex` lists each tensor once, and its locations have been checked. Both a full checkpoint and a stage
directory, which holds a part of one, can be indexed. Nothing is written, and no tensor bytes are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpptool.checkpoint.aliases import tensor_aliases
from zpptool.checkpoint.header import Header, TensorInfo, read_header
from zpptool.checkpoint.model_config import layer_count, read_config
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import is_plain_name

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 256 * 1024 * 1024
_NUMBERED = re.compile(r".*-\d+-of-(?P<total>[0-9]{1,9})\.safetensors")

__all__ = ["INDEX_NAME", "SINGLE_NAME", "CheckpointIndex", "TensorInfo", "read_index"]


@dataclass(frozen=True)
class CheckpointIndex:
    """The tensors of one directory.

    Attributes:
        directory: as given, not resolved.
        config: the parsed config.json.
        tensors: by name, ordered by file and by offset in it.
        headers: the headers of the weight files, ordered by file name.
        stale: second copies of tensors, in files that the index does not map them to: tensor name to file.
        aliases: second names of shared tensors: name to the name that is stored (see `aliases`).
        notes: choices made where there were several, as sentences for the user.
    """

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    headers: tuple[Header, ...]
    stale: dict[str, Path] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """The number of decoder layers in config.json; raises ZppError (INVALID) if it states none."""
        return layer_count(self.config)

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_index(directory: Path) -> CheckpointIndex:
    """Read config.json, the index if there is one, and the header of every weight file.

    Raises:
        ZppError: (INVALID) it is not a checkpoint directory, may not be read, has no safetensors files, a header is
            invalid, or the index names a file or a tensor that does not exist.
    """
    directory = Path(directory)
    _refuse_unreadable(directory)
    present = sorted(path.name for path in directory.glob("*.safetensors"))
    if not present and (foreign := _foreign_weights(directory)):
        raise foreign
    config = read_config(directory)
    weight_map = _read_weight_map(directory)
    names, notes = _weight_files(directory, present, weight_map)
    headers = tuple(read_header(directory / name) for name in names)
    tensors, stale = _collect(directory, headers, weight_map)
    if not tensors:
        raise invalid_error(f"the safetensors files of {directory} hold no tensor")
    aliases = tensor_aliases((header.metadata for header in headers), tensors)
    return CheckpointIndex(directory, config, tensors, headers, stale, aliases, tuple(notes))


def _refuse_unreadable(directory: Path) -> None:
    """Refuse a directory that this user may not list or enter: otherwise it would look empty.

    Raises:
        ZppError: (INVALID) it is refused.
    """
    try:
        for name in os.listdir(directory)[:1]:
            (directory / name).lstat()
    except PermissionError as cause:
        raise invalid_error(
            f"{directory} cannot be read: {cause.strerror}", "Check its permissions: it needs r and x for this user."
        ) from cause
    except OSError:
        return  # it does not exist, or is no directory: the reader of its config names that


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Return the index's map from tensor name to file name, or None if there is no index."""
    path = directory / INDEX_NAME
    if not path.exists():
        return None
    content = read_json(path, MAX_INDEX_BYTES, "index of a checkpoint")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid_error(f"{path} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name):
            raise invalid_error(f"{path} maps tensor {tensor} to {name!r}, which is not the name of a file beside it")
    return weight_map


def _weight_files(
    directory: Path, present: list[str], weight_map: dict[str, str] | None
) -> tuple[list[str], list[str]]:
    """Return the names of the files to read, and notes on safetensors files that are ignored.

    Hugging Face files take precedence over Mistral's own `consolidated*` ones. With an index, the checkpoint consists
    of the files it names; without one, of `model.safetensors`, or of all safetensors files that are not an adapter.
    """
    usable = [name for name in present if not name.startswith(("consolidated", "adapter"))]
    if weight_map is not None:
        chosen = sorted(set(weight_map.values()))
        missing = [name for name in chosen if not (directory / name).is_file()]
        if missing:
            raise invalid_error(
                f"{directory / INDEX_NAME} names {len(missing)} missing file(s), the first is {missing[0]}",
                "download the checkpoint again; some of its files are missing",
            )
    elif SINGLE_NAME in usable:
        chosen = [SINGLE_NAME]
    elif usable:
        _check_complete(directory, usable)
        chosen = usable
    else:
        raise _no_safetensors(directory, present)
    left = [name for name in present if name not in chosen]
    return chosen, [f"left out {', '.join(left)}: the weights are read from {_named(chosen)}"] if left else []


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _check_complete(directory: Path, names: list[str]) -> None:
    """Refuse numbered shards without an index if some are missing; each name states the total number."""
    totals = {int(match["total"]) for name in names if (match := _NUMBERED.fullmatch(name))}
    if totals and (len(totals) > 1 or totals != {len(names)}):
        raise invalid_error(
            f"{directory} holds {len(names)} safetensors file(s) and no index, but their names state {max(totals)}",
            f"download the missing files, and {INDEX_NAME}",
        )


def _foreign_weights(directory: Path) -> ZppError | None:
    for suffix in (".bin", ".gguf", ".pth", ".pt"):
        if any(directory.glob(f"*{suffix}")):
            return invalid_error(
                f"{directory} holds {suffix} weights only, no safetensors",
                "load it with transformers' from_pretrained and write it with save_pretrained, as safetensors",
            )
    return None


def _no_safetensors(directory: Path, present: list[str]) -> ZppError:
    if any(name.startswith("consolidated") for name in present):
        return invalid_error(
            f"{directory} holds only Mistral's own consolidated*.safetensors, not the Hugging Face ones",
            "download the model*.safetensors files of the same model",
        )
    if any(name.startswith("adapter") for name in present):
        return invalid_error(f"{directory} holds an adapter, not a model", "merge the adapter into its base model")
    return invalid_error(f"{directory} holds no safetensors file", "name a directory with the weights of the model")


def _collect(
    directory: Path, headers: Iterable[Header], weight_map: dict[str, str] | None
) -> tuple[dict[str, TensorInfo], dict[str, Path]]:
    """Return one location for each tensor, and the stale copies.

    A tensor that the index does not list still belongs to the model, because loaders read whole files.
    """
    tensors: dict[str, TensorInfo] = {}
    stale: dict[str, Path] = {}
    for header in headers:
        for tensor in header.tensors:
            home = weight_map.get(tensor.name) if weight_map else None
            if home is not None and home != header.file.name:
                stale[tensor.name] = header.file
            elif tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise invalid_error(f"{directory} holds tensor {tensor.name} in both {other} and {header.file.name}")
            else:
                tensors[tensor.name] = tensor
    lost = [name for name in weight_map or () if name not in tensors]
    if lost:
        home = (weight_map or {})[lost[0]]
        raise invalid_error(
            f"{directory / INDEX_NAME} names {len(lost)} tensor(s) that are not in their files, "
            f"the first is {lost[0]} in {home}",
            "download the checkpoint again; index and files do not match",
        )
    return tensors, stale
