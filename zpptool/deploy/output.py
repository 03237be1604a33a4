# SPDX-License-Identifier: Apache-2.0
"""Write generated files into a directory, all of them or none; files of before are replaced only with `--force`.

The same input always gives the same bytes. Files are put in place only when all are written. Files that were not
written here, such as keys and overlays, are kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import is_inner_path

MARKER = ".zpptool-deploy"
"""A file in every directory written here, which lists the others; `--force` replaces no directory without it."""

LOST = "lost+found"
"""An entry of the root of an empty volume."""


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
    """Write files into a directory, all of them or none.

    Args:
        files: content by path relative to `directory`.
        directory: the directory, created if it does not exist.
        force: replace the files that were written here before.

    Raises:
        ZppError: (INVALID) the directory is not empty and may not be replaced, or a file would be outside it; (FAILURE)
            it cannot be written.
    """
    outside = [name for name in files if not is_inner_path(name)]
    if outside:
        raise invalid_error(f"the file {outside[0][:80]!r} would be outside {directory}, or is not a valid file name")
    directory = Path(os.path.abspath(directory))
    try:
        if directory.exists():
            _refuse_to_replace(files, directory, force)
            _replace_files(files, directory)
            return
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            _fill(new, files)
            new.rename(directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as cause:
        raise ZppError(f"{directory} cannot be written: {cause.strerror}", "Choose another -o DIR.") from cause


def _refuse_to_replace(files: Mapping[str, str], directory: Path, force: bool) -> None:
    present = [directory] if not directory.is_dir() else [item for item in directory.iterdir() if item.name != LOST]
    if not present:
        return
    if not force:
        raise invalid_error(f"{directory} already exists", "Choose another -o DIR, or give --force.")
    if not (directory / MARKER).is_file():
        raise invalid_error(
            f"{directory} was not written by zpptool deploy, and is not replaced", "Choose another -o DIR."
        )
    written = _written_before(directory)
    foreign = [name for name in files if written and name not in written and os.path.lexists(directory / name)]
    if foreign:
        raise invalid_error(
            f"{directory / foreign[0]} was not written by zpptool deploy, and is not replaced",
            "Move it, or choose another -o DIR.",
        )


def _written_before(directory: Path) -> list[str]:
    """Return the names of the files that deploy has written to a directory; none if its marker does not list them."""
    try:
        names = (directory / MARKER).read_text(encoding="utf-8").splitlines()[1:]
    except (FileNotFoundError, ValueError):
        return []
    return [name for name in names if is_inner_path(name)]


def _replace_files(files: Mapping[str, str], directory: Path) -> None:
    """Write all files in a directory that exists, then put them in place, and remove those of before that are obsolete.

    The directory is kept: it may be a mount point or the current directory of a shell.
    """
    new = Path(tempfile.mkdtemp(prefix=f"{MARKER}.", dir=directory))
    try:
        _fill(new, files)
        obsolete = [name for name in _written_before(directory) if name not in files]
        for name in [*files, MARKER]:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(directory / name)
        for name in obsolete:
            (directory / name).unlink(missing_ok=True)
            with suppress(OSError):  # it is not empty
                (directory / name).parent.rmdir()
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(new: Path, files: Mapping[str, str]) -> None:
    new.chmod(0o755)
    listed = "".join(f"{name}\n" for name in sorted(files))
    for name, text in {**files, MARKER: f"Written by zpptool deploy; --force replaces these files:\n{listed}"}.items():
        file = new / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
