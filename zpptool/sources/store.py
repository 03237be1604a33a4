# SPDX-License-Identifier: Apache-2.0
"""The store of fetched stages: a directory of stage directories, each under a digest of what it holds.

    STORE/stages/DIGEST/stage_1    one stage; DIGEST is of the model's identity, all layer ranges and the stage's index
    STORE/whole/DIGEST/NAME        a whole checkpoint; DIGEST is of its identity
    STORE/models/DIGEST.json       what a name meant when it was resolved: its commit, its number of layers
    STORE/locks/DIGEST.lock        held while one of these is fetched

The digest decides the content, so other ranges or another commit never overwrite a stage that a pipeline is using, and
a stage that is there is used without a request. STORE is $ZPP_CACHE, else $XDG_CACHE_HOME/zpptool, else
~/.cache/zpptool.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import msgspec

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.streaming import write_whole
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import Partition

_log = logging.getLogger(__name__)
STORE_VARIABLE = "ZPP_CACHE"
DIGEST_LENGTH = 32


class KnownModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a name meant when it was resolved.

    Attributes:
        name: as `known_name` builds it.
        identity: of the source (see `RemoteSource`).
        num_layers: how many decoder layers the model has.
    """

    name: str
    identity: str
    num_layers: int


def store_directory() -> Path:
    """Where the store is. It may not exist yet.

    Raises:
        ZppError: (INVALID) this user has no home directory, and no variable names another place.
    """
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "zpptool"
    except RuntimeError as cause:
        raise invalid_error(
            "there is no directory for fetched stages: this user has no home", f"Set {STORE_VARIABLE} to a directory."
        ) from cause


def content_digest(*parts: object) -> str:
    """A short digest of texts in order, for the name of a directory."""
    return digest_bytes("\n".join(map(str, parts)).encode())[:DIGEST_LENGTH]


def stage_home(store: Path, identity: str, partition: Partition, stage: int) -> Path:
    """The directory in the store that holds the directory of one stage of a split."""
    return store / "stages" / content_digest(identity, *partition, stage)


def whole_home(store: Path, identity: str) -> Path:
    """The directory in the store that holds the directory of a whole checkpoint."""
    return store / "whole" / content_digest(identity)


@contextmanager
def fetching(store: Path, home: Path) -> Iterator[None]:
    """Hold the lock under which one directory of the store is fetched; wait while another process holds it.

    Raises:
        ZppError: (INVALID) the store cannot be written to.
    """
    path = store / "locks" / f"{home.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            _log.info("another process fetches the same: waiting for it")
            lock.acquire()
    except OSError as cause:
        raise invalid_error(
            f"{store}, the directory for fetched stages, cannot be written to: {cause.strerror}",
            f"Set {STORE_VARIABLE} to a directory of this user.",
        ) from cause
    try:
        yield
    finally:
        lock.release()


def whole_stage(directory: Path, stage: int, partition: Partition, model_digest: str | None = None) -> bool:
    """Whether a stage directory is there, whole, and the stage that is wanted.

    The manifest proves its own bytes; of the files, names and sizes are compared.

    Args:
        directory: of the stage.
        stage: its index.
        partition: all layer ranges.
        model_digest: of the model; None for any.
    """
    try:
        manifest = load_manifest(directory)
        wanted = (manifest.stage, manifest.ranges) == (stage, partition)
        if not wanted or model_digest not in (None, manifest.model_digest):
            return False
        sizes = [(file.name, file.nbytes) for file in manifest.weight_files]
        sizes += [(file.path, file.nbytes) for file in manifest.small_files]
        return all((directory / name).stat().st_size == nbytes for name, nbytes in sizes)
    except (ZppError, OSError):
        return False


def remember(store: Path, known: KnownModel) -> None:
    """Write down what a name means now. A store that cannot be written to is left as it is."""
    with suppress(OSError):
        folder = store / "models"
        folder.mkdir(parents=True, exist_ok=True)
        path = _known_file(store, known.name)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        write_whole(draft, [msgspec.json.encode(known)])
        draft.rename(path)


def recall(store: Path, name: str) -> KnownModel | None:
    """What a name meant when it was resolved last; None if it never was here."""
    with suppress(OSError, msgspec.MsgspecError):
        known = msgspec.json.decode(_known_file(store, name).read_bytes(), type=KnownModel)
        return known if known.name == name else None
    return None


def _known_file(store: Path, name: str) -> Path:
    return store / "models" / f"{digest_bytes(name.encode())[:DIGEST_LENGTH]}.json"
