# SPDX-License-Identifier: Apache-2.0
"""Tensor bytes in motion: each is read once, in runs as long as the file allows, hashed, and written on.

Memory stays at one chunk a thread, whatever the size of a tensor or a file. Files are worked on side by side, so that
hashing one overlaps with reading and writing another: all three let go of the interpreter lock. Bytes that need no
hash, or are shared instead of copied, do not pass through the process at all (see `transport`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from blake3 import blake3

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.file_copy import (
    STEP_BYTES,
    Advance,
    Stopped,
    copy_run,
    ended_early,
    hardlink,
    reflink,
    start_writing,
)
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.shards import ShardPlan
from zpptool.regular_file import open_regular

CHUNK_BYTES = 256 * 1024
"""A chunk is read, hashed and written while it is still in the processor's cache."""
WORKERS = max(2, min(4, os.cpu_count() or 1))

Reader = Callable[[Path, int, int], Iterable[memoryview]]
"""Reads bytes of a file (path, offset, count) chunk by chunk; a chunk is gone when the next one is asked for."""
Result = TypeVar("Result")


class WrittenFile(msgspec.Struct, frozen=True):
    """A weight file as it was written.

    Attributes:
        nbytes: its length.
        header_blake3: the digest of all before its tensor data.
        hashes: the digest of each tensor's bytes; empty where they were not hashed.
    """

    nbytes: int
    header_blake3: str
    hashes: dict[str, str]


def read_local(file: Path, offset: int, nbytes: int) -> Iterator[memoryview]:
    """Chunks of a file on this machine; raises OSError, and ZppError when it ends early."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, nbytes)))
    with file.open("rb", buffering=0) as source:
        source.seek(offset)
        while nbytes:
            got = source.readinto(buffer[:nbytes])
            if not got:
                raise ended_early(file)
            nbytes -= got
            yield buffer[:got]


@dataclass(frozen=True)
class CopyOptions:
    """How the bytes of a split travel.

    Attributes:
        mode: shared or copied.
        hashed: every tensor's bytes are hashed for the manifest.
        synced: the weight files are on the disk when the split is done.
        read: where the source is not on this machine: what reads it.
    """

    mode: Mode = Mode.AUTO
    hashed: bool = True
    synced: bool = True
    read: Reader | None = None


def side_by_side(jobs: Sequence[Callable[[threading.Event], Result]]) -> list[Result]:
    """Run the jobs in threads and return their results in order; the first failure stops the others and is raised.

    Each job is handed an event, and gives up with `Stopped` soon after it is set.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=WORKERS)
    futures = [pool.submit(job, stop) for job in jobs]
    try:
        done, _running = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            if fault := future.exception():
                raise fault
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def hash_tensors(
    tensors: Sequence[TensorInfo],
    stop: threading.Event,
    advance: Advance,
    write: Callable[[memoryview], None] = lambda _chunk: None,
    read: Reader = read_local,
) -> dict[str, str]:
    """Read the bytes of `tensors` in the given order, hash each, and hand all to `write`.

    Raises:
        ZppError: the file ends early.
        OSError: the file cannot be read, or `write` failed.
        Stopped: `stop` was set.
    """
    hashes: dict[str, str] = {}
    for run in _runs(tensors):
        chunks = _watched(read(run[0].file, run[0].offset, sum(tensor.nbytes for tensor in run)), stop, advance, write)
        chunk = memoryview(b"")
        for tensor in run:
            hasher, left = blake3(), tensor.nbytes
            while left:
                if not chunk:
                    chunk = next(chunks)
                piece, chunk = chunk[:left], chunk[left:]
                hasher.update(piece)
                left -= len(piece)
            hashes[tensor.name] = hasher.hexdigest()
    return hashes


def write_shard(path: Path, shard: ShardPlan, way: CopyOptions, stop: threading.Event, advance: Advance) -> WrittenFile:
    """Write one weight file, and fsync it unless `way` says otherwise.

    Raises:
        ZppError: the file system cannot share as `way` asks, or the source ends early.
        OSError: the disk fails.
        Stopped: `stop` was set.
    """
    head = shard.head
    head_digest = digest_bytes(head)
    if way.mode is Mode.HARDLINK and shard.whole and way.read is None:
        hardlink(shard.source, path)
        hashes = _hashed_or_counted(shard, way, stop, advance)
        return WrittenFile(shard.header.file_bytes, head_digest, hashes)
    with path.open("xb", buffering=0) as target:
        write_all(target, memoryview(head))
        if way.read is None and _shared(shard, target.fileno(), way.mode, stop):
            hashes = _hashed_or_counted(shard, way, stop, advance)
        elif way.hashed or way.read is not None:
            hashes = write_hashed(target, shard.tensors, stop, advance, way.read or read_local, synced=way.synced)
        else:
            hashes = {}
            with shard.source.open("rb") as source:
                for run in shard.runs():
                    copy_run(source.fileno(), target.fileno(), run, stop, advance, synced=way.synced)
        if way.synced:
            os.fsync(target.fileno())
        return WrittenFile(len(head) + shard.nbytes, head_digest, hashes)


def write_hashed(
    target: BinaryIO,
    tensors: Sequence[TensorInfo],
    stop: threading.Event,
    advance: Advance,
    read: Reader = read_local,
    *,
    synced: bool = True,
) -> dict[str, str]:
    """Write the bytes of `tensors` to where an unbuffered file stands, and hash them; raises as `hash_tensors`.

    Args:
        synced: the file will be synced when all is there, so the disk may begin at once.
    """
    write = _WriteBehind(target).write if synced else partial(write_all, target)
    return hash_tensors(tensors, stop, advance, write, read)


def _shared(shard: ShardPlan, target: int, mode: Mode, stop: threading.Event) -> bool:
    """Reflink what can be and copy the rest; False, with nothing done, where nothing can be shared."""
    if mode not in (Mode.AUTO, Mode.REFLINK):
        return False
    runs = sorted(shard.runs(), key=lambda run: -run.nbytes)
    with shard.source.open("rb") as source:
        if not runs or not reflink(source.fileno(), target, runs[0]):
            return False
        for run in runs[1:]:
            if not reflink(source.fileno(), target, run):
                copy_run(source.fileno(), target, run, stop, lambda _bytes: None)
    return True


def _hashed_or_counted(shard: ShardPlan, way: CopyOptions, stop: threading.Event, advance: Advance) -> dict[str, str]:
    if way.hashed:
        return hash_tensors(shard.tensors, stop, advance)
    advance(shard.nbytes)
    return {}


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file, in the place of one that a killed run left, and fsync it; returns its length and digest."""
    hasher = blake3()
    path.unlink(missing_ok=True)
    with path.open("xb", buffering=0) as target:
        for chunk in chunks:
            hasher.update(chunk)
            write_all(target, memoryview(chunk))
        os.fsync(target.fileno())
        return target.tell(), hasher.hexdigest()


def read_chunks(path: Path) -> Iterable[memoryview]:
    """The content of a file, in chunks; raises OSError, and ZppError (INVALID) where it is no regular file."""
    open_regular(path).close()
    return read_local(path, 0, path.stat().st_size)


def write_all(target: BinaryIO, content: memoryview) -> None:
    """Write all of `content` to an unbuffered file."""
    while content:
        content = content[target.write(content) :]


class _WriteBehind:
    """Writes chunks, and lets the disk begin with them before the file is whole."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._begun = 0
        self._reached = target.tell()

    def write(self, chunk: memoryview) -> None:
        write_all(self._target, chunk)
        self._reached += len(chunk)
        if self._reached - self._begun >= STEP_BYTES:
            start_writing(self._target.fileno(), self._begun, self._reached - self._begun)
            self._begun = self._reached


def _watched(
    chunks: Iterable[memoryview], stop: threading.Event, advance: Advance, write: Callable[[memoryview], None]
) -> Iterator[memoryview]:
    for chunk in chunks:
        if stop.is_set():
            raise Stopped
        write(chunk)
        advance(len(chunk))
        yield chunk


def _runs(tensors: Sequence[TensorInfo]) -> Iterable[list[TensorInfo]]:
    """The tensors, those together whose bytes follow on each other in one file."""
    run: list[TensorInfo] = []
    for tensor in tensors:
        if run and (tensor.file, tensor.offset) != (run[-1].file, run[-1].offset + run[-1].nbytes):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run
