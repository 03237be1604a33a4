# SPDX-License-Identifier: Apache-2.0
"""List the small files of a checkpoint, which every stage gets: configs, tokenizer, chat template, model code.

These are all files, in subfolders too, that are neither weights nor leftovers of a download or of training. Symbolic
links within the checkpoint and those of the Hugging Face cache are followed; `links` defines which others are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zpptool.checkpoint.leftovers import is_leftover
from zpptool.checkpoint.links import LinkBounds
from zpptool.checkpoint.weight_files import INDEX_NAME
from zpptool.errors import invalid_error

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz",
    ".tflite", ".ot",
)  # fmt: skip
WEIGHT_INDEX_SUFFIXES = tuple(f"{suffix}.index.json" for suffix in WEIGHT_SUFFIXES)
STAGE_FILE = "zpp-stage.json"
DANGLING = "a link to a file that does not exist"
LOOPING = "a link to a folder that contains it"
SPECIAL = "not a regular file"
MAX_SMALL_BYTES = 256 * 1024 * 1024
"""Maximum size of a small file in bytes: larger than any tokenizer."""
MAX_ENTRIES = 100_000
MAX_LINKED_FOLDERS = 100
"""Limit on linked folders: two links in each of a few folders already expand exponentially."""


class SmallFiles(NamedTuple):
    """The small files of a checkpoint. All paths are relative to it, use slashes, and are sorted.

    Attributes:
        small: the files to copy into every stage.
        large: files that are too large to be small files.
        outside: links that lead out of the checkpoint and were not followed.
        leftovers: logs, states and data of training; see `leftovers`.
        others: files that hold weights, judging by their names.
        unusable: dangling and circular links, and special files: path to reason.
    """

    small: list[str]
    large: list[str]
    outside: list[str]
    leftovers: list[str]
    others: list[str]
    unusable: dict[str, str]


def small_files(directory: Path, *, follow_links: bool = False) -> SmallFiles:
    """List the small files of a checkpoint.

    Args:
        directory: the checkpoint's directory.
        follow_links: whether to follow links that lead out of it too.

    Raises:
        ZppError: (INVALID) a folder cannot be read, or there are too many files or links to folders.
    """
    found = SmallFiles([], [], [], [], [], {})
    bounds = None if follow_links else LinkBounds(directory)
    for path in _files_below(directory, bounds, found):
        name = path.relative_to(directory).as_posix()
        if not path.is_file():
            found.unusable[name] = DANGLING if not path.exists() else SPECIAL
        elif is_leftover(name):
            found.leftovers.append(name)
        elif not _is_small_basename(path.name):
            found.others.append(name)
        elif bounds is not None and bounds.outside_target(path) is not None:
            found.outside.append(name)
        else:
            (found.small if path.stat().st_size <= MAX_SMALL_BYTES else found.large).append(name)
    for names in (found.small, found.large, found.outside, found.leftovers, found.others):
        names.sort()
    return found


def _files_below(directory: Path, bounds: LinkBounds | None, found: SmallFiles) -> Iterator[Path]:
    """Yield all files that are not hidden. Linked folders are entered unless they lead outside or loop.

    Links to folders that are not entered are added to `found`.
    """
    folders: list[tuple[Path, tuple[str, ...]]] = [(directory, (os.path.realpath(directory),))]
    seen = links = 0
    while folders:
        folder, ancestors = folders.pop()
        for entry in _entries(folder):
            seen += 1
            links += entry.is_symlink() and entry.is_dir()
            if seen > MAX_ENTRIES or links > MAX_LINKED_FOLDERS:
                what = f"{MAX_ENTRIES} files" if seen > MAX_ENTRIES else f"{MAX_LINKED_FOLDERS} links to folders"
                raise invalid_error(f"{directory} holds more than {what}", "Name the directory of one checkpoint.")
            path = Path(entry)
            if not entry.is_dir():
                if not (entry.name.startswith(".") or entry.name in (STAGE_FILE, INDEX_NAME)):
                    yield path
            elif entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            elif bounds is not None and bounds.outside_target(path) is not None:
                found.outside.append(path.relative_to(directory).as_posix())
            elif (real := os.path.realpath(path)) not in ancestors:
                folders.append((path, (*ancestors, real)))
            else:
                found.unusable[path.relative_to(directory).as_posix()] = LOOPING


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as cause:
        raise invalid_error(f"{folder} cannot be read: {cause.strerror}") from cause


def is_small_name(path: str) -> bool:
    """Return whether a file with this path in a checkpoint is a small file, provided that it is not too large."""
    *folders, name = path.split("/")
    hidden = any(folder.startswith(".") or folder == "__pycache__" for folder in folders)
    return not hidden and _is_small_basename(name) and not is_leftover(path)


def _is_small_basename(name: str) -> bool:
    return not (name.startswith(".") or name == STAGE_FILE or name.endswith(WEIGHT_SUFFIXES + WEIGHT_INDEX_SUFFIXES))
