# SPDX-License-Identifier: Apache-2.0
"""The cache of huggingface_hub, which all tools of Hugging Face share: find a model in it, and download one into it.

The cache is where HF_HUB_CACHE or HF_HOME says. A model is found without any request, by branch, tag or commit.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from zpptool.checkpoint.index import INDEX_NAME, SINGLE_NAME, read_index
from zpptool.checkpoint.smallfiles import MAX_SMALL_BYTES, is_small_name
from zpptool.console import Console, human_bytes
from zpptool.document import read_json
from zpptool.errors import ZppError, invalid_error
from zpptool.sources.headers import check_names, is_weight_name
from zpptool.sources.hub import HubSource, huggingface_hub
from zpptool.sources.hub_errors import translated_errors
from zpptool.sources.names import HubId
from zpptool.sources.source import RemoteFile

SPARE_BYTES = 64 * 1024 * 1024
"""Disk space that a download leaves free, in bytes."""
WATCH_S = 0.5
"""Seconds between two looks at how much is downloaded."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


class Snapshot(NamedTuple):
    """A model in the cache: its directory, and its commit."""

    directory: Path
    commit: str


def cached_snapshot(model: HubId) -> Snapshot | None:
    """Find a model in the cache, without a request; None if it is not there, lacks weights, or if huggingface_hub is
    not installed."""
    found = _snapshot_with_config(model) if _is_installed() else None
    if found is None:
        return None
    try:
        read_index(found.directory)
    except ZppError:
        return None
    return found


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer is there. A model that another tool loaded into the cache may lack it."""
    return any((directory / name).is_file() for name in _TOKENIZERS) or any(directory.glob("*.tiktoken"))


def download_whole(model: HubId, token: str | None, console: Console) -> Snapshot:
    """Download the weights and small files of a model into the cache; files that are there are kept.

    Small files come first, so that a snapshot with all its weights has them too. What a killed download has finished
    is not downloaded again.

    Raises:
        ZppError: (INVALID) the disk is too full, or the model has no safetensors; as `HubSource`.
    """
    source = HubSource(model, token)
    check_names(source.files)
    small = [
        file
        for file in source.files
        if file.name == INDEX_NAME or (is_small_name(file.name) and (file.nbytes or 0) <= MAX_SMALL_BYTES)
    ]
    directory = _download(model, source, small, token)
    weights = _chosen_weights(directory, source)
    missing = [file for file in weights if not (directory / file.name).is_file()]
    needed = sum(file.nbytes or 0 for file in missing)
    _check_space(directory, needed)
    if missing:
        with console.progress(f"downloading {model.repo}", needed) as advance, _watched(directory, advance):
            _download(model, source, missing, token)
    return Snapshot(directory, source.commit)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    return _is_installed() and bool(importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE)


def _is_installed() -> bool:
    return importlib.util.find_spec("huggingface_hub") is not None


def _snapshot_with_config(model: HubId) -> Snapshot | None:
    found = huggingface_hub(model).try_to_load_from_cache(model.repo, "config.json", revision=model.revision)
    if not isinstance(found, str):
        return None
    directory = Path(found).parent
    return Snapshot(directory, directory.name)


def _chosen_weights(directory: Path, source: HubSource) -> list[RemoteFile]:
    """The weight files of the checkpoint, as `read_index` chooses them.

    Raises:
        ZppError: (INVALID) there are none.
    """
    present = [file for file in source.files if is_weight_name(file.name)]
    if (directory / INDEX_NAME).is_file():
        index = read_json(directory / INDEX_NAME, MAX_SMALL_BYTES, "index of a checkpoint")
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        named = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        present = [file for file in present if file.name in named]
    elif any(file.name == SINGLE_NAME for file in present):
        present = [file for file in present if file.name == SINGLE_NAME]
    if not present:
        raise invalid_error(
            f"{source.repo} has no weights in safetensors files", "choose a repository of this model that has them"
        )
    return present


def _download(model: HubId, source: HubSource, files: Sequence[RemoteFile], token: str | None) -> Path:
    """Download files of the source's commit into the cache, and return the snapshot's directory."""
    hub = huggingface_hub(model)
    names = [_as_pattern(file.name) for file in files]
    with translated_errors(model, token), _without_bars():
        common = {"allow_patterns": names, "token": token}
        found = Path(hub.snapshot_download(source.repo, revision=model.revision, **common))
        if found.name != source.commit:  # the branch has moved since the files were listed
            found = Path(hub.snapshot_download(source.repo, revision=source.commit, **common))
    return found


def _as_pattern(name: str) -> str:
    """A pattern that this name alone matches."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed_bytes and free < needed_bytes + SPARE_BYTES:
        raise invalid_error(
            f"not enough disk in the Hugging Face cache, {directory.parents[2]}: {human_bytes(needed_bytes)} are to be"
            f" downloaded, and {human_bytes(free)} are free",
            "free some space, or set HF_HUB_CACHE to a directory on another disk",
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Have huggingface_hub draw no progress bars of its own: the console shows the progress."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    drawn = not utils.are_progress_bars_disabled()
    with suppress(Exception):
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            with suppress(Exception):
                utils.enable_progress_bars()


@contextmanager
def _watched(directory: Path, advance: Any) -> Iterator[None]:
    """Report how much the files of a repository in the cache have grown, as long as the block runs."""
    blobs = directory.parents[1] / "blobs"
    ended = threading.Event()
    reached = _size_of(blobs)

    def watch() -> None:
        nonlocal reached
        while True:
            last = ended.wait(WATCH_S)
            now = _size_of(blobs)
            if now > reached:
                advance(now - reached)
                reached = now
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _size_of(folder: Path) -> int:
    """Bytes on the disk of the files in a folder."""
    total = 0
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return total
