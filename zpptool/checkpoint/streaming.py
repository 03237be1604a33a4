# SPDX-License-Identifier: Apache-2.0
"""Stream tensor bytes: each is read once, in the longest contiguous runs, hashed, and written.

Memory use is one chunk per thread, whatever the size of a tensor or a file. Files are processed in parallel, so that
hashing one overlaps with reading and writing another; all three release the interpreter lock. Bytes that need no hash,
or are shared instead of copied, do not pass through the process at all (see `file_copy`).
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
    sync,
)
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.mode import Mode
from zpptool.checkpoint.shards import Run, ShardPlan
from zpptool.regular_file import open_regular

CHUNK_BYTES = 256 * 1024
"""Bytes read, hashed and written at a time: small enough to stay in the CPU cache."""
WORKERS = max(2, min(4, os.cpu_count() or 1))

Reader = Callable[[Path, int, int], Iterable[memoryview]]
"""Reads bytes of a file (path, offset, count) chunk by chunk. A chunk is valid only until the next one is requested."""
Fetcher = Callable[[Path, Sequence[Run], BinaryIO, Path, threading.Event, Advance], None]
"""Fetches runs of a file that is beyond this machine into an open target file. It takes the path that the file has in
the planned directory, the runs, the target, a journal of what has arrived, an event that cancels the work, and a
function that takes the number of bytes that have arrived. It raises `Stopped` soon after the event is set."""
Result = TypeVar("Result")


class WrittenFile(msgspec.Struct, frozen=True):
    """Properties of a weight file that was written.

    Attributes:
        nbytes: size of the file in bytes.
        header_blake3: digest of the bytes before its tensor data.
        hashes: digest of each tensor's bytes by tensor name; empty if they were not hashed.
    """

    nbytes: int
    header_blake3: str
    hashes: dict[str, str]


def read_local(file: Path, offset: int, nbytes: int) -> Iterator[memoryview]:
    """Read a local file in chunks; raises OSError, and ZppError (FAILURE) if it ends early."""
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
    """How the bytes of a split are copied.

    Attributes:
        mode: whether blocks are shared with the source or copied.
        hashed: whether every tensor's bytes are hashed for the manifest.
        synced: whether the weight files are fsynced before the split completes.
        fetch: fetches tensors if the source is not local; None for a local source. What is fetched is always hashed.
    """

    mode: Mode = Mode.AUTO
    hashed: bool = True
    synced: bool = True
    fetch: Fetcher | None = None


def run_parallel(jobs: Sequence[Callable[[threading.Event], Result]]) -> list[Result]:
    """Run jobs in threads and return their results in order; the first failure cancels the others and is raised.

    Each job gets an event, and raises `Stopped` soon after it is set.
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
    """Read the bytes of `tensors` in the given order, hash each tensor, and pass all chunks to `write`.

    Args:
        tensors: the tensors to read.
        stop: cancels the work when set.
        advance: called with the number of bytes just processed.
        write: called with every chunk.
        read: reads a file.

    Returns:
        the digest of each tensor's bytes, by tensor name.

    Raises:
        ZppError: (FAILURE) the file ended early.
        OSError: the file cannot be read, or `write` failed.
        Stopped: `stop` was set.
    """
    hashes: dict[str, str] = {}
    for run in _runs(tensors):
        chunks = _write_through(
            read(run[0].file, run[0].offset, sum(tensor.nbytes for tensor in run)), stop, advance, write
        )
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


def write_shard(
    path: Path, shard: ShardPlan, options: CopyOptions, stop: threading.Event, advance: Advance
) -> WrittenFile:
    """Write one weight file of a local source, and fsync it if `options.synced`.

    Args:
        path: the file to create.
        shard: the planned file.
        options: how the bytes are copied, and whether they are hashed.
        stop: cancels the work when set.
        advance: called with the number of bytes just processed.

    Raises:
        ZppError: (INVALID) the file system does not support hard links; (FAILURE) the source ended early.
        OSError: the disk failed.
        Stopped: `stop` was set.
    """
    head = shard.head
    head_digest = digest_bytes(head)
    if options.mode is Mode.HARDLINK and shard.whole:
        hardlink(shard.source, path)
        hashes = _hashed_or_counted(shard, options, stop, advance)
        return WrittenFile(shard.header.file_bytes, head_digest, hashes)
    with path.open("xb", buffering=0) as target:
        write_all(target, memoryview(head))
        if _reflinked(shard, target.fileno(), options.mode, stop):
            hashes = _hashed_or_counted(shard, options, stop, advance)
        elif options.hashed:
            hashes = write_hashed(target, shard.tensors, stop, advance, synced=options.synced)
        else:
            hashes = {}
            with shard.source.open("rb") as source:
                for run in shard.runs():
                    copy_run(source.fileno(), target.fileno(), run, stop, advance, synced=options.synced)
        if options.synced:
            sync(target.fileno())
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
    """Write the bytes of `tensors` at the current position of an unbuffered file, and hash them.

    Args:
        target: the file to write to.
        tensors: the tensors to read.
        stop: cancels the work when set.
        advance: called with the number of bytes just processed.
        read: reads a file.
        synced: request writeback during the copy, because the file is fsynced at the end.

    Returns:
        the digest of each tensor's bytes, by tensor name.

    Raises as `hash_tensors`.
    """
    write = _WriteBehind(target).write if synced else partial(write_all, target)
    return hash_tensors(tensors, stop, advance, write, read)


def _reflinked(shard: ShardPlan, target: int, mode: Mode, stop: threading.Event) -> bool:
    """Reflink the runs that can be shared and copy the rest. Returns False, with nothing written, if none can be."""
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


def _hashed_or_counted(
    shard: ShardPlan, options: CopyOptions, stop: threading.Event, advance: Advance
) -> dict[str, str]:
    if options.hashed:
        return hash_tensors(shard.tensors, stop, advance)
    advance(shard.nbytes)
    return {}


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write and fsync a file, replacing one that a killed run left; return its size in bytes and its digest."""
    hasher = blake3()
    path.unlink(missing_ok=True)
    with path.open("xb", buffering=0) as target:
        for chunk in chunks:
            hasher.update(chunk)
            write_all(target, memoryview(chunk))
        sync(target.fileno())
        return target.tell(), hasher.hexdigest()


def read_chunks(path: Path) -> Iterable[memoryview]:
    """Read a whole file in chunks; raises OSError, and ZppError (INVALID) if it is not a regular file."""
    open_regular(path).close()
    return read_local(path, 0, path.stat().st_size)


def write_all(target: BinaryIO, content: memoryview) -> None:
    """Write all of `content` to an unbuffered file."""
    while content:
        content = content[target.write(content) :]


class _WriteBehind:
    """Writes chunks, and requests writeback while the file is still incomplete."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._requested = 0
        self._reached = target.tell()

    def write(self, chunk: memoryview) -> None:
        write_all(self._target, chunk)
        self._reached += len(chunk)
        if self._reached - self._requested >= STEP_BYTES:
            start_writing(self._target.fileno(), self._requested, self._reached - self._requested)
            self._requested = self._reached


def _write_through(
    chunks: Iterable[memoryview], stop: threading.Event, advance: Advance, write: Callable[[memoryview], None]
) -> Iterator[memoryview]:
    for chunk in chunks:
        if stop.is_set():
            raise Stopped
        write(chunk)
        advance(len(chunk))
        yield chunk


def _runs(tensors: Sequence[TensorInfo]) -> Iterable[list[TensorInfo]]:
    """Group the tensors into runs whose bytes are contiguous in one file."""
    run: list[TensorInfo] = []
    for tensor in tensors:
        if run and (tensor.file, tensor.offset) != (run[-1].file, run[-1].offset + run[-1].nbytes):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run
