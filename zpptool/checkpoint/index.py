# SPDX-License-Identifier: Apache-2.0
"""Index every tensor of a checkpoint directory (name, dtype, shape, location) from headers alone.

A `CheckpointIndex` lists each tensor once, and its locations have been checked. Both a full checkpoint and a stage
directory, which holds a part of one, can be indexed. Nothing is written, and no tensor bytes are read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpptool.checkpoint.aliases import tensor_aliases
from zpptool.checkpoint.header import Header, TensorInfo, read_header
from zpptool.checkpoint.model_config import layer_count, read_config
from zpptool.checkpoint.not_a_checkpoint import adapter_fault, foreign_weights, only_adapts, presharded
from zpptool.checkpoint.weight_files import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    SINGLE_NAME,
    find_weight_files,
    unnamed_tensors,
)
from zpptool.errors import invalid_error

__all__ = ["INDEX_NAME", "MAX_INDEX_BYTES", "SINGLE_NAME", "CheckpointIndex", "TensorInfo", "read_index"]


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
    fault = presharded(directory, present) if present else foreign_weights(directory)
    if fault is not None:
        raise fault
    config = read_config(directory)
    files = find_weight_files(directory, present)
    headers = tuple(read_header(directory / name) for name in files.names)
    tensors, stale, misplaced = _collect(directory, headers, files.weight_map)
    if not tensors:
        raise invalid_error(f"the safetensors files of {directory} hold no tensor")
    if only_adapts(tensors):
        raise adapter_fault(directory)
    aliases = tensor_aliases((header.metadata for header in headers), tensors)
    notes = (*files.notes, *misplaced, *unnamed_tensors(headers, files.weight_map))
    return CheckpointIndex(directory, config, tensors, headers, stale, aliases, notes)


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


def _collect(
    directory: Path, headers: Sequence[Header], weight_map: dict[str, str] | None
) -> tuple[dict[str, TensorInfo], dict[str, Path], list[str]]:
    """Return one location for each tensor, the stale copies, and notes on tensors in other files than the index says.

    A tensor that the index does not list still belongs to the model, because loaders read whole files.
    """
    tensors: dict[str, TensorInfo] = {}
    others: dict[str, list[TensorInfo]] = defaultdict(list)
    for tensor in (tensor for header in headers for tensor in header.tensors):
        home = weight_map.get(tensor.name) if weight_map else None
        if home is not None and directory / home != tensor.file:
            others[tensor.name].append(tensor)
        elif tensor.name in tensors:
            raise invalid_error(
                f"{directory} holds tensor {tensor.name} in both {tensors[tensor.name].file.name} and "
                f"{tensor.file.name}",
                f"Keep the files of one copy, or add the {INDEX_NAME} that says which holds it. Files of several "
                "tensor-parallel ranks have to be merged first.",
            )
        else:
            tensors[tensor.name] = tensor
    lost = [name for name in weight_map or () if name not in tensors]
    moved = {name: others.pop(name)[0] for name in lost if len(others.get(name, ())) == 1}
    gone = [name for name in lost if name not in moved]
    if gone:
        home = (weight_map or {})[gone[0]]
        raise invalid_error(
            f"{directory / INDEX_NAME} names {len(gone)} tensor(s) that are not in their files, "
            f"the first is {gone[0]} in {home}",
            f"download the checkpoint again, {INDEX_NAME} too: index and files do not match",
        )
    stale = {name: copies[-1].file for name, copies in others.items()}
    if not moved:
        return tensors, stale, []
    name = lost[0]
    note = (
        f"{INDEX_NAME} is wrong about {len(moved)} tensor(s), the first is {name}: it is in {moved[name].file.name}, "
        "and read from there"
    )
    order = {header.file: place for place, header in enumerate(headers)}
    found = sorted({**tensors, **moved}.values(), key=lambda tensor: (order[tensor.file], tensor.offset))
    return {tensor.name: tensor for tensor in found}, stale, [note]
