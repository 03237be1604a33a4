# SPDX-License-Identifier: Apache-2.0
"""What the store holds: whole stages and models, and what interrupted fetches have left; and how it is removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec

from zpptool.checkpoint.manifest import load_manifest
from zpptool.errors import ZppError, invalid_error
from zpptool.sources.names import HubId, parse_remote
from zpptool.sources.store import KnownModel, content_digest


@dataclass(frozen=True)
class StoredEntry:
    """One directory of the store.

    Attributes:
        directory: named by its digest.
        source: names the model; empty if it is not known, as after an interrupted fetch.
        stage: the stage's index; None for a whole model, or if it is not known.
        layers: the stage's layers; empty if they are not known.
        nbytes: its size on the disk, in bytes.
        is_whole: whether it was fetched to the end.
    """

    directory: Path
    source: str
    stage: int | None
    layers: str
    nbytes: int
    is_whole: bool

    def is_of(self, name: str) -> bool:
        """Whether this is of the model that a user named: its full name, `org/name`, or a URL without a version."""
        if not self.source:
            return False
        found = parse_remote(self.source)
        short = found.repo if isinstance(found, HubId) else self.source.partition("#")[0]
        return name in (self.source, self.source.removeprefix("hf://"), short, f"hf://{short}")


def stored_entries(store: Path) -> list[StoredEntry]:
    """Everything in the store, ordered by model and stage."""
    identities = {content_digest(known.identity): known.identity for known in _known_models(store)}
    entries = [_stage_entry(home) for home in sorted(store.glob("stages/*")) if home.is_dir() and home.name[0] != "."]
    for home in sorted(store.glob("whole/*")):
        is_whole = any(home.glob("[!.]*/config.json"))
        entries.append(StoredEntry(home, identities.get(home.name, ""), None, "", _size_of(home), is_whole))
    return sorted(entries, key=lambda entry: (entry.source, -1 if entry.stage is None else entry.stage))


def remove_entries(store: Path, entries: Iterable[StoredEntry]) -> int:
    """Remove directories of the store, and forget what their models' names meant; return the bytes that were freed.

    Raises:
        ZppError: (INVALID) one is being fetched, or may not be removed.
    """
    freed = 0
    for entry in entries:
        lock = filelock.FileLock(store / "locks" / f"{entry.directory.name}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as cause:
            raise invalid_error(f"{entry.directory} is being fetched", "Wait until that has ended.") from cause
        except OSError as cause:
            raise invalid_error(f"{entry.directory} cannot be removed: {cause.strerror}") from cause
        with lock:
            try:
                shutil.rmtree(entry.directory)
            except OSError as cause:
                raise invalid_error(f"{entry.directory} cannot be removed: {cause.strerror}") from cause
            entry.directory.with_name(f".{entry.directory.name}.zpp-lock").unlink(missing_ok=True)
        freed += entry.nbytes
        _forget(store, entry.source)
    return freed


def _stage_entry(home: Path) -> StoredEntry:
    for directory in home.glob("stage_*"):
        with suppress(ZppError, OSError):
            found = load_manifest(directory)
            return StoredEntry(home, found.origin, found.stage, str(found.layers), _size_of(home), True)
    return StoredEntry(home, "", None, "", _size_of(home), False)


def _known_models(store: Path) -> list[KnownModel]:
    known: list[KnownModel] = []
    for path in sorted(store.glob("models/*.json")):
        with suppress(OSError, msgspec.MsgspecError):
            known.append(msgspec.json.decode(path.read_bytes(), type=KnownModel))
    return known


def _forget(store: Path, identity: str) -> None:
    """Forget every name that meant this identity, so that it is resolved again."""
    for path in store.glob("models/*.json"):
        with suppress(OSError, msgspec.MsgspecError):
            if msgspec.json.decode(path.read_bytes(), type=KnownModel).identity == identity:
                path.unlink()


def _size_of(home: Path) -> int:
    total = 0
    for path in home.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_blocks * 512 if path.is_file() else 0
    return total
