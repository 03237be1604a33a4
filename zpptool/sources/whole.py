# SPDX-License-Identifier: Apache-2.0
"""Fetch a whole checkpoint from a web server or an object store into the store, file by file, resumable."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.output_checks import check_space
from zpptool.checkpoint.shards import Run
from zpptool.checkpoint.smallfiles import MAX_SMALL_BYTES, is_small_name
from zpptool.console import Console
from zpptool.sources.headers import check_names, is_weight_name
from zpptool.sources.ranges import RangeFetcher
from zpptool.sources.source import RemoteSource
from zpptool.sources.store import fetching, whole_home


def fetch_whole(source: RemoteSource, store: Path, console: Console) -> Path:
    """The directory of a whole checkpoint in the store; it is fetched if it is not there.

    Raises:
        ZppError: (INVALID) the disk is too full, or the store cannot be written to; as `RemoteSource.read`.
    """
    home = whole_home(store, source.identity)
    directory = home / (source.served.rpartition("/")[2] or "model")
    with fetching(store, home):
        if not directory.is_dir():
            _fetch_into(directory, source, console)
    return directory


def _fetch_into(directory: Path, source: RemoteSource, console: Console) -> None:
    check_names(source.files)
    partial = directory.with_name(f".{directory.name}.zpp-partial")
    partial.mkdir(parents=True, exist_ok=True)
    journals = directory.with_name(f".{directory.name}.zpp-work")
    journals.mkdir(exist_ok=True)
    sizes = {
        file.name: source.begin(file.name, 1)[0] if file.nbytes is None else file.nbytes
        for file in source.files
        if file.name == INDEX_NAME or is_weight_name(file.name) or is_small_name(file.name)
    }
    sizes = {name: size for name, size in sizes.items() if is_weight_name(name) or size <= MAX_SMALL_BYTES}
    present = sum(path.stat().st_blocks * 512 for path in partial.rglob("*") if path.is_file())
    check_space(directory, max(0, sum(sizes.values()) - present))
    stop = threading.Event()
    with (
        console.progress(f"fetching {source.served}", sum(sizes.values())) as advance,
        RangeFetcher(source, partial) as fetch,
    ):
        for name, nbytes in sizes.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = journals / (name.replace("/", "--") + ".journal")
            if not path.exists():
                journal.unlink(missing_ok=True)
            with path.open("r+b" if path.exists() else "x+b", buffering=0) as target:
                fetch(path, [Run(0, 0, nbytes)], target, journal, stop, advance)
                target.truncate(nbytes)
                os.fsync(target.fileno())
    partial.rename(directory)
    for path in journals.iterdir():
        path.unlink()
    journals.rmdir()
