# SPDX-License-Identifier: Apache-2.0
"""Recognise a Git LFS pointer, the short text in place of a file that a clone has not fetched."""

from __future__ import annotations

from pathlib import Path

from zpptool.errors import ZppError, invalid_error

POINTER_START = b"version https://git-lfs"
_MAX_POINTER_BYTES = 1024
_NEEDED_SUFFIXES = (
    ".json", ".model", ".txt", ".jinja", ".py", ".tiktoken", ".vocab", ".bpe", ".spm", ".yaml", ".yml", ".jsonl",
    ".safetensors", ".pt", ".bin",
)  # fmt: skip
"""Files that an engine reads. A pointer in place of an image or a paper does no harm."""


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer; False if it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_POINTER_BYTES:
            return False
        return path.read_bytes().startswith(POINTER_START)
    except OSError:
        return False


def lfs_fault(directory: Path, names: list[str]) -> ZppError | None:
    """Return the error for the pointers among the files `names` that an engine reads; None if there are none."""
    needed = [name for name in names if name.endswith(_NEEDED_SUFFIXES)]
    if not needed:
        return None
    more = f", as {'is' if len(needed) == 2 else 'are'} {', '.join(needed[1:])}" if len(needed) > 1 else ""
    return invalid_error(
        f"{directory / needed[0]} is a Git LFS pointer, not the file itself{more}",
        "run `git lfs pull` in the checkpoint",
    )
