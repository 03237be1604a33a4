# SPDX-License-Identifier: Apache-2.0
"""Decide which safetensors files of a directory hold the model, from its index and the files that are there.

An index can be stale: tools that write other weight files leave it behind. Where the files are a whole checkpoint
without it, they are read, and a note says so; otherwise it is refused, and named as the culprit if it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zpptool.checkpoint.header import Header, read_header
from zpptool.checkpoint.lfs_pointers import is_lfs_pointer, lfs_fault
from zpptool.checkpoint.not_a_checkpoint import no_safetensors
from zpptool.document import read_json
from zpptool.errors import invalid_error
from zpptool.file_names import is_inner_path

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 256 * 1024 * 1024
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<total>[0-9]{1,9})\.safetensors")


class WeightFiles(NamedTuple):
    """The files that hold the model.

    Attributes:
        names: paths relative to the directory, with slashes, sorted.
        weight_map: the file of each tensor, from the index; None if there is no index, or it does not count.
        notes: choices made where there were several, as sentences for the user.
    """

    names: list[str]
    weight_map: dict[str, str] | None
    notes: list[str]


def find_weight_files(directory: Path, present: list[str]) -> WeightFiles:
    """Find the weight files of a checkpoint.

    Hugging Face files take precedence over Mistral's own `consolidated*` ones. With an index, the checkpoint consists
    of the files it names; without one, of `model.safetensors`, or of all safetensors files that are not an adapter.

    Args:
        directory: of the checkpoint.
        present: the names of the safetensors files in it.

    Raises:
        ZppError: (INVALID) there are none, some are missing, or the index is invalid.
    """
    usable = [name for name in present if not name.startswith(("consolidated", "adapter"))]
    weight_map = _read_weight_map(directory)
    if weight_map is not None:
        return _indexed(directory, usable, weight_map)
    if SINGLE_NAME in usable:
        return WeightFiles([SINGLE_NAME], None, [])
    if not usable:
        raise no_safetensors(directory, present)
    _check_complete(directory, usable)
    return WeightFiles(usable, None, [])


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Return the index's map from tensor name to file name, or None if there is no index."""
    path = directory / INDEX_NAME
    if not path.exists():
        return None
    if is_lfs_pointer(path) and (pointer := lfs_fault(directory, [INDEX_NAME])):
        raise pointer
    content = read_json(path, MAX_INDEX_BYTES, "index of a checkpoint")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid_error(f"{path} has no weight_map")
    weight_map = {tensor: _without_dot(name) for tensor, name in weight_map.items()}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_inner_path(name):
            raise invalid_error(f"{path} maps tensor {tensor} to {name!r}, which is not the name of a file below it")
    return weight_map


def _without_dot(name: Any) -> Any:
    """Return a file name without `./` in front, which some tools write."""
    return name.removeprefix("./") if isinstance(name, str) else name


def _indexed(directory: Path, usable: list[str], weight_map: dict[str, str]) -> WeightFiles:
    """Return the files that the index names, or those to read in their place if some are missing."""
    chosen = sorted(set(weight_map.values()))
    missing = [name for name in chosen if not (directory / name).is_file()]
    if not missing:
        return WeightFiles(chosen, weight_map, [])
    lacking = f"{len(missing)} file(s) that are not there, the first is {missing[0]}"
    stale = f"{INDEX_NAME} is stale (remove it): it names {lacking}"
    if SINGLE_NAME in usable and SINGLE_NAME not in chosen:
        return WeightFiles([SINGLE_NAME], None, [f"{stale}; the weights are read from {SINGLE_NAME}"])
    if (folder := _folder_of(directory, missing)) is not None:
        moved = {name: f"{folder}/{name}" for name in missing}
        weight_map = {tensor: moved.get(name, name) for tensor, name in weight_map.items()}
        note = f"{INDEX_NAME} names {len(missing)} file(s) that are in the folder {folder}: they are read from there"
        return WeightFiles(sorted(set(weight_map.values())), weight_map, [note])
    others = [name for name in usable if name not in chosen]
    if len(missing) == len(chosen) and others and _is_complete(others):
        if unknown := _tensors_elsewhere(directory, others, weight_map):
            raise invalid_error(
                f"{directory / INDEX_NAME} names {len(missing)} missing file(s), the first is {missing[0]}; the files "
                f"that are there, {_named(others)}, lack tensor {unknown}",
                f"The index belongs to other files: download {INDEX_NAME} again, or remove it if the files are whole.",
            )
        return WeightFiles(others, None, [f"{stale}; the weights are read from {_named(others)}"])
    hint = "download the checkpoint again; some of its files are missing"
    if others:
        hint = f"download the missing files; if {_named(others)} are the whole model, remove the stale {INDEX_NAME}"
    raise invalid_error(
        f"{directory / INDEX_NAME} names {len(missing)} missing file(s), the first is {missing[0]}", hint
    )


def _folder_of(directory: Path, names: list[str]) -> str | None:
    """Return the one folder in `directory` that holds all files of these names, or None."""
    folders = sorted({path.parent.name for path in directory.glob(f"*/{names[0]}") if path.is_file()})
    found = [folder for folder in folders if all((directory / folder / name).is_file() for name in names)]
    return found[0] if len(found) == 1 and not found[0].startswith(".") else None


def _tensors_elsewhere(directory: Path, names: list[str], weight_map: Mapping[str, str]) -> str | None:
    """Return the first tensor of the index that none of these files holds, or None."""
    held = {tensor.name for name in names for tensor in read_header(directory / name).tensors}
    return next((name for name in weight_map if name not in held), None)


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _is_complete(names: list[str]) -> bool:
    """Return whether the names are all numbers of one set of shards."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    sets = {(match["stem"], match["total"]) for match in matches if match}
    numbers = {int(match["number"]) for match in matches if match}
    return len(sets) == 1 and all(matches) and numbers == set(range(1, int(next(iter(sets))[1]) + 1))


def _check_complete(directory: Path, names: list[str]) -> None:
    """Refuse numbered shards without an index if some are missing; each name states the total number."""
    totals = {int(match["total"]) for name in names if (match := _NUMBERED.fullmatch(name))}
    if totals and (len(totals) > 1 or totals != {len(names)}):
        raise invalid_error(
            f"{directory} holds {len(names)} safetensors file(s) and no index, but their names state {max(totals)}",
            f"download the missing files, and {INDEX_NAME}",
        )


def unnamed_tensors(headers: tuple[Header, ...], weight_map: Mapping[str, str] | None) -> list[str]:
    """Return a note on the tensors in the weight files that the index does not name; none if it names them all."""
    held = [(tensor.name, header.file.name) for header in headers for tensor in header.tensors]
    unnamed = [place for place in held if weight_map is not None and place[0] not in weight_map]
    if not unnamed:
        return []
    name, file = unnamed[0]
    return [
        f"{INDEX_NAME} does not name {len(unnamed)} tensor(s) of its files, the first is {name} in {file}: "
        "they are kept, because loaders read whole files"
    ]
