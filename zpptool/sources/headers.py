# SPDX-License-Identifier: Apache-2.0
"""A checkpoint beyond this machine as a directory that has its headers and small files, for planning.

Each weight file there has its real size but is sparse after its header, so the code that plans a local checkpoint works
unchanged. Its tensors must never be read from that directory: `read_samples_of` and `ranges` read them at the source.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from zpptool.checkpoint.header import LENGTH_BYTES, TensorInfo, json_length
from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.smallfiles import MAX_SMALL_BYTES, is_small_name
from zpptool.errors import invalid_error
from zpptool.file_names import is_inner_path, named_twice
from zpptool.sources.source import RemoteFile, RemoteSource

FIRST_BYTES = 128 * 1024
"""Bytes of the first request for each weight file; most headers are shorter."""
CONNECTIONS = 8
Item = TypeVar("Item")
Made = TypeVar("Made")


@contextmanager
def headers_directory(source: RemoteSource) -> Iterator[Path]:
    """Download headers and small files into a temporary directory, and yield it.

    Raises:
        ZppError: (INVALID) a file name of the source leads outside, or a header is wrong; as `RemoteSource.read`.
    """
    with tempfile.TemporaryDirectory(prefix="zpp-headers-") as folder:
        directory = Path(folder, source.served.rpartition("://")[2] or "model")
        directory.mkdir(parents=True)
        _fill(directory, source)
        yield directory


def read_samples_of(source: RemoteSource, directory: Path) -> Callable[[list[TensorInfo]], list[bytes]]:
    """A reader of sampled tensor bytes (see `checkpoint.sample`) for the tensors of a headers directory."""

    def read_one(sample: TensorInfo) -> bytes:
        name = sample.file.relative_to(directory).as_posix()
        return b"".join(source.read(name, sample.offset, sample.nbytes))

    return lambda samples: in_parallel(read_one, samples)


def in_parallel(do: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """The results of calls on `CONNECTIONS` threads, in order."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(do, items))


def is_weight_name(name: str) -> bool:
    """Whether a file of this name may hold weights of the checkpoint; for others `read_index` needs the name only."""
    return name.endswith(".safetensors") and "/" not in name and not name.startswith(("consolidated", "adapter"))


def check_names(files: Iterable[RemoteFile]) -> None:
    """Refuse file names that lead outside a directory, or that are there twice; raises ZppError (INVALID)."""
    names = [file.name for file in files]
    outside = [name for name in names if not is_inner_path(name)]
    if outside:
        raise invalid_error(
            f"the repository names the file {outside[0]!r}, which is outside it or not a valid file name"
        )
    twice = named_twice(names)
    if twice is not None:
        raise invalid_error(f"the repository names the file {twice} twice")


def _fill(directory: Path, source: RemoteSource) -> None:
    check_names(source.files)
    names = [file.name for file in source.files]
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    small = [name for name in names if is_small_name(name)]
    index = [name for name in names if name == INDEX_NAME]
    in_parallel(lambda name: _fetch_small(directory / name, name, source), [*small, *index])
    weights = [name for name in names if is_weight_name(name)]
    for name in set(names) - {*small, *index, *weights}:
        (directory / name).touch()
    in_parallel(lambda name: _fetch_header(directory / name, name, source), weights)


def _fetch_small(path: Path, name: str, source: RemoteSource) -> None:
    total, start = source.begin(name, FIRST_BYTES)
    with path.open("wb") as stream:
        stream.write(start)
        if total > MAX_SMALL_BYTES:
            stream.truncate(total)
        elif total > len(start):
            for chunk in source.read(name, len(start), total - len(start)):
                stream.write(chunk)
    os.utime(path, (0, 0))


def _fetch_header(path: Path, name: str, source: RemoteSource) -> None:
    """Create a sparse file with the size of the one at the source and only its header as content."""
    total, start = source.begin(name, FIRST_BYTES)
    length = LENGTH_BYTES + json_length(path, start[:LENGTH_BYTES], total)
    if length > len(start):
        start += b"".join(source.read(name, len(start), length - len(start)))
    with path.open("wb") as stream:
        stream.write(start[:length])
        stream.truncate(total)
