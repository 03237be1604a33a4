# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint that every stage carries whole: configs, tokenizer, chat template, model code.

They are all files that are neither weights nor leftovers of a download, in subfolders too. Symbolic links
within the checkpoint and those of the Hugging Face cache are read through; where others lead is told in `links`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zpptool.checkpoint.links import LinkBounds
from zpptool.errors import invalid_error

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz",
    ".tflite", ".ot",
)  # fmt: skip
WEIGHT_INDEX_SUFFIXES = tuple(f"{suffix}.index.json" for suffix in WEIGHT_SUFFIXES)
STAGE_FILE = "zpp-stage.json"
MAX_SMALL_BYTES = 256 * 1024 * 1024
"""Larger than any tokenizer; a larger file is data that no engine loads with a model."""
MAX_ENTRIES = 100_000
MAX_LINKED_FOLDERS = 100
"""Two links in each of a few folders make a small directory look endless."""


class SmallFiles(NamedTuple):
    """The small files of a checkpoint. All paths are relative to it, with slashes, and sorted.

    Attributes:
        small: the files to carry.
        large: files that are too large to be one.
        outside: links that lead out of the checkpoint and were not followed.
    """

    small: list[str]
    large: list[str]
    outside: list[str]


def small_files(directory: Path, *, follow_links: bool = False) -> SmallFiles:
    """The small files of a checkpoint.

    Args:
        directory: of the checkpoint.
        follow_links: links that lead out of it are followed as those within it are.

    Raises:
        ZppError: (INVALID) a folder cannot be read, or there are too many files, or links to folders.
    """
    found = SmallFiles([], [], [])
    bounds = None if follow_links else LinkBounds(directory)
    for path in _files_below(directory, bounds, found.outside):
        name = path.relative_to(directory).as_posix()
        if bounds is not None and bounds.way_out(path) is not None:
            found.outside.append(name)
        elif path.is_file():
            (found.small if path.stat().st_size <= MAX_SMALL_BYTES else found.large).append(name)
    return SmallFiles(*map(sorted, found))


def _files_below(directory: Path, bounds: LinkBounds | None, outside: list[str]) -> Iterator[Path]:
    """All that may be a small file by its name. A folder that is a link is entered, unless it leads out or back."""
    folders: list[tuple[Path, tuple[str, ...]]] = [(directory, (os.path.realpath(directory),))]
    seen = links = 0
    while folders:
        folder, above = folders.pop()
        for entry in _entries(folder):
            seen += 1
            links += entry.is_symlink() and entry.is_dir()
            if seen > MAX_ENTRIES or links > MAX_LINKED_FOLDERS:
                what = f"{MAX_ENTRIES} files" if seen > MAX_ENTRIES else f"{MAX_LINKED_FOLDERS} links to folders"
                raise invalid_error(f"{directory} holds more than {what}", "Name the directory of one checkpoint.")
            path = Path(entry)
            if not entry.is_dir():
                if _carried(entry.name):
                    yield path
            elif entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            elif bounds is not None and bounds.way_out(path) is not None:
                outside.append(path.relative_to(directory).as_posix())
            elif (real := os.path.realpath(path)) not in above:
                folders.append((path, (*above, real)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as cause:
        raise invalid_error(f"{folder} cannot be read: {cause.strerror}") from cause


def is_small_name(path: str) -> bool:
    """Whether a file of this path in a checkpoint is one of them, if it is not too large."""
    *folders, name = path.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return not hidden and _carried(name)


def _carried(name: str) -> bool:
    return not (name.startswith(".") or name == STAGE_FILE or name.endswith(WEIGHT_SUFFIXES + WEIGHT_INDEX_SUFFIXES))
