# SPDX-License-Identifier: Apache-2.0
"""Write a destination directory atomically: it holds everything that a run makes, or what it held before.

All files are written to a hidden directory beside the destination, synced, and renamed when complete. An interrupted
run leaves its finished files there, with a receipt for each weight file; the next run with the same result resumes from
them, and any other run starts over. A lock prevents two runs from writing to one destination.

    .out.zpp-partial   the new directory             .out.zpp-old    the directory being replaced
    .out.zpp-work      receipts of finished files    .out.zpp-lock   held by the run
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec

from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.streaming import WrittenFile, write_whole
from zpptool.console import human_bytes
from zpptool.errors import ZppError, invalid_error
from zpptool.file_names import LONGEST_NAME_BYTES

SPARE_BYTES = 16 * 1024 * 1024
"""Disk space reserved for file system metadata, in bytes, on top of the files of a split."""
LONGEST_OUTPUT_BYTES = 3072
"""Maximum length of the output path: a path has at most 4,095 bytes, and those of the files in it are longer."""
_OWN_ENTRY = re.compile(r"stage_\d+")


class _Receipt(msgspec.Struct):
    """A finished weight file: its properties and its modification time when it was written."""

    written: WrittenFile
    mtime_ns: int


@dataclass(frozen=True)
class Workplace:
    """The directories in which a run writes its files.

    Attributes:
        directory: becomes the destination when it is complete.
        work: holds the receipts.
    """

    directory: Path
    work: Path

    def finished(self, path: Path) -> WrittenFile | None:
        """Return the receipt of a weight file from an earlier run; None without one, or if the file was changed."""
        try:
            receipt = msgspec.json.decode(self._receipt(path).read_bytes(), type=_Receipt)
            stat = path.stat()
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        same = (stat.st_size, stat.st_mtime_ns) == (receipt.written.nbytes, receipt.mtime_ns)
        return receipt.written if same else None

    def finish(self, path: Path, written: WrittenFile) -> None:
        """Record that a weight file is complete and synced."""
        receipt = self._receipt(path)
        draft = receipt.with_suffix(".draft")
        write_whole(draft, [msgspec.json.encode(_Receipt(written, path.stat().st_mtime_ns))])
        draft.rename(receipt)

    def _receipt(self, path: Path) -> Path:
        return self.work / ("--".join(path.relative_to(self.directory).parts) + ".receipt")


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
    lengths = [len(os.fsencode(part)) for part in (*target.parent.parts, _beside(target, "partial").name)]
    if max(lengths) > LONGEST_NAME_BYTES or len(os.fsencode(target)) > LONGEST_OUTPUT_BYTES:
        raise invalid_error(f"the name of the output {output} is too long", "choose a shorter --output-dir")
    return target


def nearest_existing_parent(target: Path) -> Path:
    """Return the nearest existing directory above `target`."""
    return next(parent for parent in target.parents if parent.exists())


def check_output(target: Path, *, force: bool | None) -> None:
    """Refuse a destination that is not empty, before anything is written.

    Args:
        target: the destination.
        force: whether the stages of an earlier split may be replaced; None if the command has no --force.

    Raises:
        ZppError: (INVALID) the destination exists and is not empty.
    """
    if target.is_dir() and any(target.iterdir()) and not force:
        hint = "choose another --output-dir" + (", or give --force to replace it" if force is not None else "")
        raise invalid_error(f"the output {target} exists and is not empty", hint)


def check_writable(target: Path) -> None:
    """Refuse a destination that is not a directory or cannot be created; raises ZppError (INVALID)."""
    if target.exists() and not target.is_dir():
        raise invalid_error(f"the output {target} exists and is not a directory", "choose another --output-dir")
    parent = nearest_existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise invalid_error(f"{parent} cannot be written to", "choose another --output-dir")


def check_space(target: Path, needed_bytes: int) -> None:
    """Refuse a destination on a disk with less than `needed_bytes` free; raises ZppError (INVALID)."""
    free = shutil.disk_usage(nearest_existing_parent(target)).free
    if needed_bytes and free < needed_bytes + SPARE_BYTES:
        raise invalid_error(
            f"not enough disk for the output {target}: it needs {human_bytes(needed_bytes)} "
            f"and {human_bytes(free)} are free",
            "free some space, or choose an --output-dir on another disk",
        )


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, and clean up after a killed run.

    Raises:
        ZppError: (INVALID) another process is writing there, or it cannot be written to.
    """
    check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    path = _beside(target, "lock")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as cause:
        if not path.exists():  # as in /proc: no file can be made there, whatever its permissions say
            raise invalid_error(f"{target.parent} cannot be written to", "choose another --output-dir") from cause
        raise invalid_error(f"another zpptool is writing to {target}", "wait until it has finished") from cause
    try:
        settle(target)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def settle(target: Path) -> None:
    """Recover `target` after an interrupted run: the new directory if it was complete, else the old one.

    Call it within `locked`. Unfinished files remain beside it.
    """
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    elif old.exists():
        is_stage = (old / STAGE_FILE).exists()
        foreign = [] if is_stage else [entry for entry in old.iterdir() if not _OWN_ENTRY.fullmatch(entry.name)]
        for entry in foreign:
            entry.rename(target / entry.name)
        shutil.rmtree(old)


@contextmanager
def whole_directory(target: Path, identity: str) -> Iterator[Workplace]:
    """Yield the directories to work in; when the block succeeds, its directory becomes `target`.

    Call it within `locked`. The stages of an earlier split in `target` are replaced as the last step; any other entry
    of it is preserved.

    Args:
        target: the destination.
        identity: determines the result: only a run with the same identity resumes an interrupted one.
    """
    partial, work = _beside(target, "partial"), _beside(target, "work")
    target.parent.mkdir(parents=True, exist_ok=True)
    named = work / "identity"
    if not (named.is_file() and partial.is_dir() and named.read_text() == identity):
        discard(target)
        partial.mkdir()
        work.mkdir()
        write_whole(named, [identity.encode()])
    try:
        yield Workplace(partial, work)
        sync_tree(partial)
        if target.exists():
            target.rename(_beside(target, "old"))
        partial.rename(target)
    except BaseException:
        settle(target)
        if not any(work.glob("*.receipt")):
            discard(target)
        raise
    settle(target)
    sync_directory(target.parent)
    discard(target)


def discard(target: Path) -> None:
    """Remove the files of an unfinished run beside `target`, receipts first, so that none refers to a missing file."""
    shutil.rmtree(_beside(target, "work"), ignore_errors=True)
    shutil.rmtree(_beside(target, "partial"), ignore_errors=True)


def unfinished(target: Path) -> Path | None:
    """Return the directory with the finished files of an interrupted run, or None."""
    partial = _beside(target, "partial")
    return partial if partial.is_dir() else None


def sync_tree(directory: Path) -> None:
    """Fsync `directory` and all directories in it. Files are synced when they are written."""
    for folder, _subfolders, _names in os.walk(directory):
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Fsync one directory."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_fault(cause: OSError, target: Path) -> ZppError:
    """Translate an operating system error during writing to `target` into a ZppError (FAILURE)."""
    where = cause.filename or target
    left = unfinished(target)
    state = f"finished files are in {left}: run the same command again to resume" if left else "no file was finished"
    return ZppError(f"writing {target} failed: {where}: {cause.strerror}", f"{state}; the source is untouched")


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.zpp-{what}")
