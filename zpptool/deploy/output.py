# SPDX-License-Identifier: Apache-2.0
"""Write what was made as one directory: all of it or nothing, and never over what is there unless told to.

The same files always have the same bytes. What `--force` replaces is moved away only when the new directory is whole.
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
"""In every directory that was written here: `--force` replaces no other."""

KEYS = "keys"
"""A user's own directory inside: it is kept, with its modes, when the rest is replaced."""


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which people and some tools read badly."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def documents(items: Sequence[Mapping[str, Any]]) -> str:
    """One YAML document for each item, keys in the order they were given."""
    return "---\n".join(
        yaml.dump(dict(item), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120) for item in items
    )


def write_directory(files: Mapping[str, str], directory: Path, *, force: bool = False) -> None:
    """Write files, named relative to `directory`, as a whole.

    Raises:
        ZppError: (INVALID) the directory is there and may not be replaced, or a file would lie outside it; (FAILURE) it
            cannot be written.
    """
    outside = [name for name in files if not is_inner_path(name)]
    if outside:
        raise invalid_error(f"the file {outside[0][:80]!r} would lie outside {directory}, or is no file's name")
    directory = Path(os.path.abspath(directory))
    try:
        if directory.exists():
            _refuse_to_replace(directory, force)
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            _fill(made, files)
            if (directory / KEYS).is_dir():
                shutil.copytree(directory / KEYS, made / KEYS)
            _put_in_place(made, directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as cause:
        raise ZppError(f"{directory} cannot be written: {cause.strerror}", "Choose another -o DIR.") from cause


def _refuse_to_replace(directory: Path, force: bool) -> None:
    if not force:
        raise invalid_error(f"{directory} is there already", "Choose another -o DIR, or give --force.")
    if not (directory / MARKER).is_file() and any(directory.iterdir() if directory.is_dir() else [directory]):
        raise invalid_error(
            f"{directory} was not written by zpptool deploy, and is left alone", "Choose another -o DIR."
        )


def _fill(made: Path, files: Mapping[str, str]) -> None:
    made.chmod(0o755)
    for name, text in {**files, MARKER: "Written by zpptool deploy; --force replaces this directory.\n"}.items():
        file = made / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def _put_in_place(made: Path, directory: Path) -> None:
    """A directory cannot be renamed over a full one: the old one steps aside for the moment between two renames."""
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    try:
        if directory.exists():
            directory.rename(aside / "old")
        try:
            made.rename(directory)
        except OSError:
            if (aside / "old").exists():
                (aside / "old").rename(directory)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
