# SPDX-License-Identifier: Apache-2.0
"""Refuse a destination before anything is written: its place, its permissions, its content, the space on its disk."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from zpptool.checkpoint.manifest import is_stage_directory
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.console import human_bytes
from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import LONGEST_NAME_BYTES

SPARE_BYTES = 16 * 1024 * 1024
"""Disk space reserved for file system metadata, in bytes, on top of the files of a split."""
LONGEST_OUTPUT_BYTES = 3072
"""Maximum length of the output path: a path has at most 4,095 bytes, and those of the files in it are longer."""
_STAGE_NAME = re.compile(r"stage_[0-9]+")
_OWN_ENTRY = re.compile(r"\.(.+\.)?zpp-(partial|work|old|lock.*)", re.DOTALL)
_ALWAYS_THERE = frozenset({"lost+found"})
"""Entries of the root of an empty volume."""


def resolve_output(output: Path, source: Path) -> Path:
    """Return the destination with links resolved.

    Raises:
        ZppError: (INVALID) it is the source, is inside it, or contains it; or its path is too long.
    """
    target, checkpoint = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if target == checkpoint or checkpoint in target.parents:
        raise invalid_error(f"the output {output} is inside the source {source}, which is never written to")
    if target in checkpoint.parents:
        raise invalid_error(f"the output {output} contains the source {source}", "choose a directory beside it")
    if max(len(os.fsencode(part)) for part in target.parts) > LONGEST_NAME_BYTES or (
        len(os.fsencode(target)) > LONGEST_OUTPUT_BYTES
    ):
        raise invalid_error(f"the name of the output {output} is too long", "choose a shorter --output-dir")
    return target


def nearest_existing(target: Path) -> Path:
    """Return `target` if it exists, else the nearest existing directory above it."""
    return next(path for path in (target, *target.parents) if path.exists())


def replaced_entries(target: Path, *, is_stage: bool, force: bool | None) -> tuple[str, ...]:
    """Return the names of the entries of a destination that a run replaces, before anything is written.

    Args:
        target: the destination.
        is_stage: whether it becomes one stage, rather than a directory of stages.
        force: whether what an earlier split wrote may be replaced; None if the command has no --force.

    Raises:
        ZppError: (INVALID) the destination is not empty, and it may not be replaced, or has what no split wrote in the
            places of stages.
    """
    present = [] if not target.is_dir() else [n for n in sorted(os.listdir(target)) if not is_ignored(n)]
    if not present:
        return ()
    hint = "choose another --output-dir"
    if force is None:
        raise invalid_error(f"the output {target} exists and is not empty", hint)
    is_ours = is_stage_directory(target)
    if is_ours and not is_stage:
        raise invalid_error(f"the output {target} is itself one stage of a split", hint)
    stages = [name for name in present if _STAGE_NAME.fullmatch(name)]
    foreign = [target / name for name in stages if not is_stage_directory(target / name)]
    if is_stage and not is_ours:
        foreign = [target]
    if foreign:
        raise invalid_error(
            f"{foreign[0]} exists and is not a stage of a split: it has no {STAGE_FILE}",
            f"{hint}; --force replaces only the stages of an earlier split",
        )
    mounted = [name for name in stages if os.path.ismount(target / name)]
    if mounted and not is_stage:
        raise invalid_error(
            f"{target / mounted[0]} is a mount point, and cannot be replaced by a split of all stages",
            f"write its stage alone: --stage {mounted[0].removeprefix('stage_')}",
        )
    if not force:
        raise invalid_error(f"the output {target} exists and is not empty", f"{hint}, or give --force to replace it")
    return tuple(present if is_stage else stages)


def check_writable(target: Path) -> None:
    """Refuse a destination that is not a directory or cannot be created; raises ZppError (INVALID)."""
    there = nearest_existing(target)
    if not there.is_dir():
        what = f"the output {target} exists and" if there == target else f"{there}, above the output {target},"
        raise invalid_error(f"{what} is not a directory", "choose another --output-dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(there)


def not_writable(directory: Path) -> ZppError:
    """Build the error for a directory in which no file can be created."""
    return invalid_error(f"{directory} cannot be written to", "choose another --output-dir")


def check_space(target: Path, needed_bytes: int) -> None:
    """Refuse a destination on a disk with less than `needed_bytes` free; raises ZppError (INVALID)."""
    free = shutil.disk_usage(nearest_existing(target)).free
    if needed_bytes and free < needed_bytes + SPARE_BYTES:
        raise invalid_error(
            f"not enough disk for the output {target}: it needs {human_bytes(needed_bytes)} "
            f"and {human_bytes(free)} are free",
            "free some space, or choose an --output-dir on another disk",
        )


def is_ignored(name: str) -> bool:
    """Return whether an entry of a destination belongs to an unfinished run, or to the file system."""
    return name in _ALWAYS_THERE or _OWN_ENTRY.fullmatch(name) is not None
