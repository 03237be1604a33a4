# SPDX-License-Identifier: Apache-2.0
"""The directory of the Batch API: files and batches, each in a directory of its own, written whole or not at all.

    files/file-ID/object.json, content        batches/batch_ID/object.json, output.jsonl, errors.jsonl, ...

One process uses it at a time; its methods may be called from several threads.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from zpptool.batch.api.objects import BatchObject, FileObject
from zpptool.batch.file_operations import FileOperations, append_all

OBJECT_NAME, CONTENT_NAME, INCOMING = "object.json", "content", "incoming-"
_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
Stored = TypeVar("Stored", FileObject, BatchObject)


def new_id(prefix: str) -> str:
    """An id that cannot be guessed.

    Args:
        prefix: `file-` or `batch_`.
    """
    return prefix + secrets.token_hex(16)


def result_file_id(batch_id: str, name: str) -> str:
    """The id of a batch's output or errors: the same one when the file is made again after a crash.

    Args:
        batch_id: of the batch.
        name: `output` or `error`.
    """
    return f"file-{blake3(f'{batch_id} {name}'.encode()).hexdigest()[:32]}"


class BatchStore:
    """Files and batches on disk, with all objects in memory.

    Args:
        directory: created if need be.
        files: the file operations.

    Raises:
        OSError: the directory cannot be used.
    """

    def __init__(self, directory: Path, files: FileOperations) -> None:
        self._directory, self._operations = directory, files
        self._lock = threading.RLock()
        for name in ("files", "batches"):
            (directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in directory.glob(f"{INCOMING}*"):  # of uploads that were interrupted
            left.unlink(missing_ok=True)
        self._files = _read(directory / "files", FileObject)
        self._batches = _read(directory / "batches", BatchObject)

    def content(self, file_id: str) -> Path:
        """The path of a file's content."""
        return self._directory / "files" / file_id / CONTENT_NAME

    def work(self, batch_id: str) -> Path:
        """The directory of a batch's output, errors and journal."""
        return self._directory / "batches" / batch_id

    def file(self, file_id: str, owner: str) -> FileObject | None:
        """An owner's file; None if there is none with that id."""
        found = self._files.get(file_id)
        return found if found is not None and found.owner == owner else None

    def batch(self, batch_id: str, owner: str | None = None) -> BatchObject | None:
        """The batch with that id of an owner, or with None of any owner; None if there is none."""
        found = self._batches.get(batch_id)
        return found if found is not None and owner in (None, found.owner) else None

    def files_of(self, owner: str) -> list[FileObject]:
        """An owner's files, the newest first."""
        with self._lock:
            return _newest_first([each for each in self._files.values() if each.owner == owner])

    def batches_of(self, owner: str | None) -> list[BatchObject]:
        """The batches of an owner, or with None of all owners, the newest first."""
        with self._lock:
            return _newest_first([each for each in self._batches.values() if owner in (None, each.owner)])

    def add_file(self, file: FileObject, content: Path) -> None:
        """Store a file. Its content is moved here; it has to lie on the same file system, and to be synced.

        Raises:
            OSError: it cannot be stored.
        """
        directory = self.content(file.id).parent
        directory.mkdir(mode=0o700, exist_ok=True)
        self._operations.replace(content, directory / CONTENT_NAME)
        self._write(directory, file)
        with self._lock:
            self._files[file.id] = file

    def incoming(self) -> Path:
        """A path for content that is being received."""
        return self._directory / f"{INCOMING}{secrets.token_hex(8)}"

    def remove_file(self, file_id: str) -> None:
        """Delete a file; the object first, so that what is interrupted leaves no file without content."""
        with self._lock:
            self._files.pop(file_id, None)
        directory = self.content(file_id).parent
        (directory / OBJECT_NAME).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)

    def put_batch(self, batch: BatchObject) -> BatchObject:
        """Store a batch's new state, and return it.

        Raises:
            OSError: it cannot be stored.
        """
        with self._lock:
            directory = self.work(batch.id)
            directory.mkdir(exist_ok=True, mode=0o700)
            self._write(directory, batch)
            self._batches[batch.id] = batch
            return batch

    def change_batch(self, batch_id: str, change: Callable[[BatchObject], BatchObject]) -> BatchObject:
        """Store what a function makes of a batch's state, and return it. No other change comes in between.

        Raises:
            OSError: it cannot be stored.
        """
        with self._lock:
            return self.put_batch(change(self._batches[batch_id]))

    def count(self, batch_id: str, completed: int, failed: int) -> None:
        """Note in memory how far a batch has come; its journal has it on disk."""
        with self._lock:
            batch = self._batches[batch_id]
            self._batches[batch_id] = msgspec.structs.replace(batch, completed=completed, failed=failed)

    def expire(self, now: int, batches_s: int) -> None:
        """Delete files whose time has come, and batches that have been over for so many seconds.

        Args:
            now: seconds since the epoch.
            batches_s: how long the record of a batch is kept after its end.
        """
        with self._lock:
            old_files = [each.id for each in self._files.values() if each.expires_at and each.expires_at <= now]
            old = [
                each.id
                for each in self._batches.values()
                if not each.is_open and max([each.created_at, *each.times.values()]) + batches_s <= now
            ]
        for file_id in old_files:
            self.remove_file(file_id)
        for batch_id in old:
            with self._lock:
                self._batches.pop(batch_id, None)
            (self.work(batch_id) / OBJECT_NAME).unlink(missing_ok=True)
            shutil.rmtree(self.work(batch_id), ignore_errors=True)

    def _write(self, directory: Path, stored: FileObject | BatchObject) -> None:
        written = directory / f"{OBJECT_NAME}.{secrets.token_hex(4)}"
        descriptor = self._operations.open(written)
        try:
            append_all(self._operations, descriptor, msgspec.json.encode(stored))
            self._operations.sync(descriptor)
        finally:
            self._operations.close(descriptor)
        self._operations.replace(written, directory / OBJECT_NAME)
        self._operations.sync_directory(directory)
        self._operations.sync_directory(directory.parent)


def _read(directory: Path, kind: type[Stored]) -> dict[str, Stored]:
    """The objects in a directory; one that is not whole was never confirmed to a client, and is left out."""
    found = {}
    for path in directory.iterdir():
        try:
            stored = msgspec.json.decode((path / OBJECT_NAME).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            continue
        if stored.id == path.name and _ID.fullmatch(stored.id):
            found[stored.id] = stored
    return found


def _newest_first(stored: list[Stored]) -> list[Stored]:
    return sorted(stored, key=lambda each: (each.created_at, each.id), reverse=True)
