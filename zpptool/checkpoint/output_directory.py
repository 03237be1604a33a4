# SPDX-License-Identifier: Apache-2.0
"""Write a destination directory: all files are written to a hidden directory, synced, and moved when all are complete.

A destination that does not exist is created by one rename, so it is complete or absent. One that exists is kept: it may
be a mount point, a volume whose parent belongs to another user, or the current directory of a shell. A record of what
is to be moved is written first, then the new entries take the place of the old ones, and the next run completes what a
killed one began. An interrupted run leaves its finished files, with a receipt for each weight file; the next run with
the same result resumes from them, and any other run starts over. A lock prevents two runs from writing to one
destination (see `output_lock`).

    beside OUT         in OUT
    .OUT.zpp-partial   .zpp-partial   the new files
    .OUT.zpp-work      .zpp-work      receipts of finished files, and the record of what is to be moved
    .OUT.zpp-lock      .zpp-lock      held by the run
                       .zpp-old       what is being replaced
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.file_copy import sync
from zpptool.checkpoint.output_checks import check_writable, not_writable
from zpptool.checkpoint.output_lock import Held, hold
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.streaming import WrittenFile, write_whole
from zpptool.errors import ZppError, invalid_error

LONGEST_HIDDEN_BYTES = 200
"""Maximum length of a name that is used as part of a hidden one beside it; a digest stands for a longer name."""
LOCK_ATTEMPTS = 20


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

    def journal(self, path: Path) -> Path:
        """The journal of a weight file that is being fetched: what of it has arrived."""
        return self._receipt(path).with_suffix(".journal")

    def _receipt(self, path: Path) -> Path:
        name = path.relative_to(self.directory).as_posix()
        return self.work / f"{digest_bytes(os.fsencode(name))}.receipt"


@dataclass(frozen=True)
class Site:
    """Where a run works: in a destination that exists, beside one that does not.

    Attributes:
        target: the destination, with links resolved.
        inside: whether it exists.
    """

    target: Path
    inside: bool

    def entry(self, what: str) -> Path:
        """Return the path of one of the hidden entries: `partial`, `work`, `lock` or `old`."""
        if self.inside:
            return self.target / f".zpp-{what}"
        name = self.target.name
        if len(os.fsencode(name)) > LONGEST_HIDDEN_BYTES:
            name = digest_bytes(os.fsencode(name))
        return self.target.with_name(f".{name}.zpp-{what}")


class _Move(msgspec.Struct):
    """What completes a run in a destination that exists: the entries of it to remove, then those to move into it."""

    remove: tuple[str, ...]
    add: tuple[str, ...]


def site_of(target: Path) -> Site:
    """Return where a run for `target` works now."""
    resolved = Path(os.path.realpath(target))
    return Site(resolved, resolved.is_dir())


@contextmanager
def locked(target: Path, *, output: Path | None = None, lock: bool = True) -> Iterator[Site]:
    """Hold the lock of `target`, complete what a killed run has begun there, and yield where to work.

    Args:
        target: the destination.
        output: the directory of all stages if the destination is one of them, so that runs of other stages may write to
            it at once, but no run of all stages.
        lock: whether to lock at all.

    Raises:
        ZppError: (INVALID) another process is writing there, or it cannot be written to.
    """
    check_writable(target)
    created = output is not None and not output.exists()
    try:
        with ExitStack() as held:
            site = _enter(target, output, held, lock=lock)
            settle(site)
            yield site
    finally:
        if created and output is not None:
            with suppress(OSError):  # others may have written to it
                output.rmdir()


def _enter(target: Path, output: Path | None, held: ExitStack, *, lock: bool) -> Site:
    """Create the directory above a destination, and enter its locks into `held`; return where to work."""
    for _attempt in range(LOCK_ATTEMPTS):
        try:
            _make_directories(target.parent)
            if not lock:
                return site_of(target)
            with ExitStack() as entered:
                if output is not None and os.access(output, os.W_OK):
                    entered.enter_context(hold(Site(output, True).entry("lock"), shared=True))
                site = site_of(target)
                entered.enter_context(hold(site.entry("lock")))
                if site_of(target) == site:
                    held.push(entered.pop_all())
                    return site
        except FileNotFoundError:
            continue  # another run has just removed the directory that it had created
        except Held as cause:
            hint = "wait until it has finished"
            if cause.marker is not None:
                hint += f"; if it was killed on another machine, remove {cause.marker}, or give --no-lock"
            raise invalid_error(f"another zpptool is writing to {target}", hint) from cause
        except OSError as cause:
            if cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise not_writable(Path(cause.filename or target).parent) from cause
    raise not_writable(target.parent)  # as in /proc: no file can be created there, whatever its permissions say


def _make_directories(directory: Path) -> None:
    """Create a directory and those above it. `Path.mkdir` recurses, too deep for a path of many short names."""
    for path in reversed((directory, *directory.parents)):
        path.mkdir(exist_ok=True)


def settle(site: Site) -> None:
    """Complete the move of a killed run, and remove files that no run can resume. Call it within `locked`."""
    if site.inside:
        _complete(site)
        _remove_beside(site.target)


def _remove_beside(target: Path) -> None:
    """Remove the files of a run that was killed before the destination was created by other means."""
    beside = Site(target, False)
    if any(beside.entry(what).exists() for what in ("partial", "work", "lock")):
        with suppress(Held, OSError), hold(beside.entry("lock")):
            discard(beside)


@contextmanager
def whole_directory(site: Site, identity: str, replaced: Sequence[str] = ()) -> Iterator[Workplace]:
    """Yield the directories to work in; when the block succeeds, what is in its directory becomes the destination.

    Call it within `locked`. Entries of a destination that are not in `replaced` are preserved.

    Args:
        site: where to work.
        identity: determines the result: only a run with the same identity resumes an interrupted one.
        replaced: from `replaced_entries`.
    """
    partial, work = site.entry("partial"), site.entry("work")
    named = work / "identity"
    if not (named.is_file() and partial.is_dir() and named.read_text() == identity):
        discard(site)
        partial.mkdir()
        work.mkdir()
        write_whole(named, [identity.encode()])
    try:
        yield Workplace(partial, work)
        sync_tree(partial)
        if site.inside:
            names = sorted(os.listdir(partial), key=lambda name: (name == STAGE_FILE, name))
            write_whole(work / "draft", [msgspec.json.encode(_Move(tuple(replaced), tuple(names)))])
            (work / "draft").rename(work / "move")
            sync_directory(work)
            _complete(site)
        else:
            partial.rename(site.target)
            sync_directory(site.target.parent)
    except BaseException:
        with suppress(OSError):
            settle(site)
        if not any(work.glob("*.receipt")) and not any(work.glob("*.journal")):
            discard(site)
        raise
    discard(site)


def _complete(site: Site) -> None:
    """Move the new entries of a complete run into the destination, in place of the old ones, if a record says so."""
    partial, work, old = site.entry("partial"), site.entry("work"), site.entry("old")
    record = work / "move"
    if record.is_file():
        move = msgspec.json.decode(record.read_bytes(), type=_Move)
        old.mkdir(exist_ok=True)
        first = sorted(move.remove, key=lambda name: name != STAGE_FILE)
        for name in first:
            is_new = name in move.add and not os.path.lexists(partial / name)
            if not is_new and os.path.lexists(site.target / name):
                _move_away(site.target / name, old / name)
        for name in move.add:
            if os.path.lexists(partial / name):
                (partial / name).rename(site.target / name)
        sync_directory(site.target)
        shutil.rmtree(old)
        discard(site)
    elif old.is_dir():
        shutil.rmtree(old)


def _move_away(path: Path, old: Path) -> None:
    """Move an entry that is replaced to `old`. One that cannot be moved (a lower layer of overlayfs) is removed."""
    try:
        path.rename(old)
    except OSError as cause:
        if cause.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTEMPTY, errno.EEXIST):
            raise
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def discard(site: Site) -> None:
    """Remove the files of an unfinished run, receipts first, so that none refers to a missing file."""
    shutil.rmtree(site.entry("work"), ignore_errors=True)
    shutil.rmtree(site.entry("partial"), ignore_errors=True)


def unfinished(target: Path) -> Path | None:
    """Return the directory with the finished files of an interrupted run for `target`, or None."""
    partial = site_of(target).entry("partial")
    return partial if partial.is_dir() else None


def sync_tree(directory: Path) -> None:
    """Fsync `directory` and all directories in it. Files are synced when they are written."""
    for folder, _subfolders, _names in os.walk(directory):
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Fsync one directory, if its file system can."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def disk_fault(cause: OSError, target: Path) -> ZppError:
    """Translate an operating system error during writing to `target` into a ZppError (FAILURE)."""
    where = cause.filename or target
    left = unfinished(target)
    state = f"finished files are in {left}: run the same command again to resume" if left else "no file was finished"
    return ZppError(f"writing {target} failed: {where}: {cause.strerror}", f"{state}; the source is untouched")
