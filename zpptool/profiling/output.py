# SPDX-License-Identifier: Apache-2.0
"""Writes a file as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from zpptool.errors import ZppError, invalid_error


def write_whole(path: Path, text: str) -> None:
    """Write a text into a file, which appears, or replaces an older one, when it is complete.

    Raises:
        ZppError: (FAILURE) it cannot be written; an older file is then unchanged.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("x", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except OSError as cause:
        raise ZppError(f"{path} cannot be written: {cause.strerror}", "Choose another -o FILE.") from cause
    finally:
        draft.unlink(missing_ok=True)


def refuse_unwritable(path: Path, *, force: bool) -> None:
    """Refuse a file that could not be written after minutes of measuring.

    Args:
        path: the file.
        force: whether one that exists may be replaced.

    Raises:
        ZppError: (INVALID) it exists, and may not be replaced; (FAILURE) its directory is not writable.
    """
    if path.exists() and not force:
        raise invalid_error(f"{path} exists already", "Choose another name, or give --force.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ZppError(f"{path} cannot be written", "Name a file in a directory that exists and is writable.")
