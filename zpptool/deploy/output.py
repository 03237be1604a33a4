# SPDX-License-Identifier: Apache-2.0
"""Write generated files as one directory, all of them or none; an existing directory is replaced only with `--force`.

The same input always gives the same bytes. The old directory is moved away only when the new one is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import is_inner_path

MARKER = ".zpptool-deploy"
"""A file in every directory written here; `--force` replaces no directory without it."""

KEYS = "keys"
"""A subdirectory with the user's key files: it is preserved, with its modes, when the rest is replaced."""


class _Dumper(yaml.SafeDumper):
    """Writes YAML without anchors and aliases, which not all tools support."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def documents(items: Sequence[Mapping[str, Any]]) -> str:
    """Return YAML text with one document per item; keys keep their order."""
    return "---\n".join(
        yaml.dump(dict(item), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120) for item in items
    )


def write_directory(files: Mapping[str, str], directory: Path, *, force: bool = False) -> None:
    """Write files into a new directory, all of them or none.

    Args:
        files: content by path relative to `directory`.
        directory: the directory to create.
        force: replace an existing directory if it was written here.

    Raises:
        ZppError: (INVALID) the directory exists and may not be replaced, or a file would be outside it; (FAILURE) it
            cannot be written.
    """
    outside = [name for name in files if not is_inner_path(name)]
    if outside:
        raise invalid_error(f"the file {outside[0][:80]!r} would be outside {directory}, or is not a valid file name")
    directory = Path(os.path.abspath(directory))
    try:
        if directory.exists():
            _refuse_to_replace(directory, force)
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            _fill(new, files)
            if (directory / KEYS).is_dir():
                shutil.copytree(directory / KEYS, new / KEYS)
            _put_in_place(new, directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as cause:
        raise ZppError(f"{directory} cannot be written: {cause.strerror}", "Choose another -o DIR.") from cause


def _refuse_to_replace(directory: Path, force: bool) -> None:
    if not force:
        raise invalid_error(f"{directory} already exists", "Choose another -o DIR, or give --force.")
    if not (directory / MARKER).is_file() and any(directory.iterdir() if directory.is_dir() else [directory]):
        raise invalid_error(
            f"{directory} was not written by zpptool deploy, and is not replaced", "Choose another -o DIR."
        )


def _fill(new: Path, files: Mapping[str, str]) -> None:
    new.chmod(0o755)
    for name, text in {**files, MARKER: "Written by zpptool deploy; --force replaces this directory.\n"}.items():
        file = new / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def _put_in_place(new: Path, directory: Path) -> None:
    """Rename `new` to `directory`. rename(2) does not replace a non-empty directory, so it is moved aside first."""
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    try:
        if directory.exists():
            directory.rename(aside / "old")
        try:
            new.rename(directory)
        except OSError:
            if (aside / "old").exists():
                (aside / "old").rename(directory)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
