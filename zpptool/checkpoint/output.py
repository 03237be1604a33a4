# SPDX-License-Identifier: Apache-2.0
"""A destination directory that holds all of what a run makes, or what it held before.

All is written to a hidden directory beside the destination, made durable, and renamed when whole. A run that was
stopped leaves there what it had finished, with a receipt for each weight file; the next run that makes the same goes on
from there, any other starts anew. A lock keeps two runs out of one destination.

    .out.zpp-partial   what is being made          .out.zpp-old    what is being replaced
    .out.zpp-work      receipts of what is done    .out.zpp-lock   held by the run
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
"""Room that a file system takes for itself beside the files of a split."""
LONGEST_OUTPUT_BYTES = 3072
"""A path has at most 4,095, and those of the files in it are longer."""
_OWN_ENTRY = re.compile(r"stage_\d+")


class _Receipt(msgspec.Struct):
    """A weight file that is done: as it was written, and its time of change then."""

    written: WrittenFile
    mtime_ns: int


@dataclass(frozen=True)
class Workplace:
    """Where a run makes its files.

    Attributes:
        directory: to be filled; it becomes the destination.
        work: holds the receipts.
    """

    directory: Path
    work: Path

    def finished(self, path: Path) -> WrittenFile | None:
        """The receipt of a weight file that an earlier run has written, if the file is still as it was then."""
        try:
            receipt = msgspec.json.decode(self._receipt(path).read_bytes(), type=_Receipt)
            stat = path.stat()
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        same = (stat.st_size, stat.st_mtime_ns) == (receipt.written.nbytes, receipt.mtime_ns)
        return receipt.written if same else None

    def finish(self, path: Path, written: WrittenFile) -> None:
        """Note that a weight file is whole and on the disk."""
        receipt = self._receipt(path)
        draft = receipt.with_suffix(".draft")
        write_whole(draft, [msgspec.json.encode(_Receipt(written, path.stat().st_mtime_ns))])
        draft.rename(receipt)

    def finished_bytes(self) -> int:
        """How many bytes an earlier run has left here."""
        return sum(path.stat().st_size for path in self.directory.rglob("*.safetensors"))

    def _receipt(self, path: Path) -> Path:
        return self.work / ("--".join(path.relative_to(self.directory).parts) + ".receipt")


def resolve_output(output: Path, source: Path) -> Path:
    """The destination, links resolved.

    Raises:
        ZppError: (INVALID) it is the source, lies in it, or holds it; or its name is too long.
    """
    target, origin = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if target == origin or origin in target.parents:
        raise invalid_error(f"the output {output} lies in the source {source}, which is never written to")
    if target in origin.parents:
        raise invalid_error(f"the output {output} holds the source {source}", "choose a directory beside it")
    lengths = [len(os.fsencode(part)) for part in (*target.parent.parts, _beside(target, "partial").name)]
    if max(lengths) > LONGEST_NAME_BYTES or len(os.fsencode(target)) > LONGEST_OUTPUT_BYTES:
        raise invalid_error(f"the name of the output {output} is too long", "choose a shorter --output-dir")
    return target


def ground_of(target: Path) -> Path:
    """The nearest directory above `target` that exists."""
    return next(parent for parent in target.parents if parent.exists())


def check_output(target: Path, *, force: bool | None) -> None:
    """Refuse a destination that is taken, before anything is written.

    An empty directory is no obstacle. `force` lets the stages of an earlier split be replaced; None says that the user
    has no such choice.

    Raises:
        ZppError: (INVALID) naming what is in the way.
    """
    if target.is_dir() and any(target.iterdir()) and not force:
        way_out = "choose another --output-dir" + (", or give --force to replace it" if force is not None else "")
        raise invalid_error(f"the output {target} exists and is not empty", way_out)


def check_ground(target: Path) -> None:
    """Refuse a destination that is no directory, or where nothing can be made; raises ZppError (INVALID)."""
    if target.exists() and not target.is_dir():
        raise invalid_error(f"the output {target} exists and is not a directory", "choose another --output-dir")
    ground = ground_of(target)
    if not os.access(ground, os.W_OK):
        raise invalid_error(f"{ground} cannot be written to", "choose another --output-dir")


def check_space(target: Path, needed_bytes: int) -> None:
    """Refuse a destination on a disk that is too full; raises ZppError (INVALID)."""
    free = shutil.disk_usage(ground_of(target)).free
    if needed_bytes and free < needed_bytes + SPARE_BYTES:
        raise invalid_error(
            f"not enough disk for the output {target}: it needs {human_bytes(needed_bytes)} "
            f"and {human_bytes(free)} are free",
            "free some space, or choose an --output-dir on another disk",
        )


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other runs out of `target`, and put right what a killed one left.

    Raises:
        ZppError: (INVALID) another process is writing there, or nothing can be written.
    """
    check_ground(target)
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
    """From whatever state a run was left in, get back to `target`: the new one if it was whole, else the old.

    Call it within `locked`. What a run had not yet finished stays beside.
    """
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    elif old.exists():
        kept = [] if (old / STAGE_FILE).exists() else [e for e in old.iterdir() if not _OWN_ENTRY.fullmatch(e.name)]
        for entry in kept:
            entry.rename(target / entry.name)
        shutil.rmtree(old)


@contextmanager
def whole_directory(target: Path, identity: str) -> Iterator[Workplace]:
    """Yield a place to work in; when the block ends well its directory becomes `target`. Call it within `locked`.

    The stages of an earlier split in `target` are replaced at the very end; anything else in it is kept.

    Args:
        target: the destination.
        identity: names all that determines the result: only a run of the same identity goes on where one stopped.
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
    """Remove what an unfinished run left beside `target`: the work first, so that no receipt outlives its file."""
    shutil.rmtree(_beside(target, "work"), ignore_errors=True)
    shutil.rmtree(_beside(target, "partial"), ignore_errors=True)


def unfinished(target: Path) -> Path | None:
    """What a run that was stopped has left to go on from."""
    partial = _beside(target, "partial")
    return partial if partial.is_dir() else None


def sync_tree(directory: Path) -> None:
    """Make the entries of `directory` and of all directories in it durable; the files are synced by who wrote them."""
    for folder, _subfolders, _names in os.walk(directory):
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Make the entries of one directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_fault(cause: OSError, target: Path) -> ZppError:
    """An operating system error while writing `target`, as a user should read it."""
    where = cause.filename or target
    left = unfinished(target)
    kept = f"what is finished is kept in {left}: run the same again to go on" if left else "nothing was kept"
    return ZppError(f"writing {target} failed: {where}: {cause.strerror}", f"{kept}; the source is untouched")


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.zpp-{what}")
