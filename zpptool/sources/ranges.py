# SPDX-License-Identifier: Apache-2.0
"""Fetch byte ranges of a source into a file: several at a time, in bounded memory, resumable after a kill.

What has arrived is written to a journal, one line a block with the digest of its bytes. A later run reads the blocks
that the journal lists, keeps those whose bytes are as the journal says, and fetches the rest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from blake3 import blake3

from zpptool.checkpoint.file_copy import Advance, Stopped
from zpptool.checkpoint.shards import Run
from zpptool.sources.source import RemoteSource

CONNECTIONS = 8
"""Ranges that are fetched at a time, of all files together."""
SPAN_BYTES = 64 * 1024 * 1024
"""The most bytes of one request."""
BLOCK_BYTES = 4 * 1024 * 1024
"""Bytes that one line of the journal stands for: what a kill loses, for each connection."""


class Block(NamedTuple):
    """Bytes that have arrived: their offset in the target file, their number, and their BLAKE3 digest."""

    offset: int
    nbytes: int
    blake3: str


class RangeFetcher:
    """Fetches ranges of one source. Use it as a context manager; it implements `checkpoint.streaming.Fetcher`.

    Args:
        source: the source.
        directory: the headers directory that was planned; a file in it has the name of the source's file.
    """

    def __init__(self, source: RemoteSource, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def __enter__(self) -> RangeFetcher:
        return self

    def __exit__(self, *_fault: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(
        self, file: Path, runs: Sequence[Run], target: BinaryIO, journal: Path, stop: threading.Event, advance: Advance
    ) -> None:
        """Fetch `runs` of a file into `target`; see `Fetcher`.

        Raises:
            ZppError: (FAILURE) the source does not give them; OSError: the disk failed; Stopped: `stop` was set.
        """
        name = file.relative_to(self._directory).as_posix()
        kept = kept_blocks(target.fileno(), journal)
        advance(sum(block.nbytes for block in kept))
        spans = missing_spans(runs, kept)
        with journal.open("ab", buffering=0) as lines:
            guard = threading.Lock()
            halt = threading.Event()

            def fetch(span: Run) -> None:
                for block in self._blocks(name, span, target.fileno(), (stop, halt), advance):
                    with guard:
                        lines.write(msgspec.json.encode(block) + b"\n")

            futures = [self._pool.submit(fetch, span) for span in spans]
            try:
                _wait_for(futures)
            finally:
                halt.set()
                for future in futures:
                    future.cancel()
                wait(futures)

    def _blocks(
        self, name: str, span: Run, target: int, ends: Iterable[threading.Event], advance: Advance
    ) -> Iterator[Block]:
        """Write one span to the target file, and yield each block of it that is complete."""
        begun = reached = span.target
        hasher = blake3()
        for chunk in self._source.read(name, span.source, span.nbytes):
            if any(end.is_set() for end in ends):
                raise Stopped
            _write_at(target, chunk, reached)
            hasher.update(chunk)
            reached += len(chunk)
            advance(len(chunk))
            if reached - begun >= BLOCK_BYTES:
                yield Block(begun, reached - begun, hasher.hexdigest())
                begun, hasher = reached, blake3()
        if reached > begun:
            yield Block(begun, reached - begun, hasher.hexdigest())


def kept_blocks(target: int, journal: Path) -> list[Block]:
    """The blocks of a journal whose bytes are in the target file, ordered by offset and without overlap.

    Args:
        target: the file's descriptor.
        journal: may be missing, or end in the middle of a line.
    """
    blocks: list[Block] = []
    with suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines():
            with suppress(msgspec.MsgspecError):
                blocks.append(msgspec.json.decode(line, type=Block))
    kept: list[Block] = []
    reached = 0
    for block in sorted(blocks):
        if block.offset >= reached and _digest_at(target, block) == block.blake3:
            kept.append(block)
            reached = block.offset + block.nbytes
    return kept


def missing_spans(runs: Sequence[Run], kept: Sequence[Block], most_bytes: int = SPAN_BYTES) -> list[Run]:
    """What of the runs is still to be fetched, in pieces of at most `most_bytes`.

    Args:
        runs: ordered by their offset in the target.
        kept: what is there, ordered by offset.
        most_bytes: of one piece.
    """
    spans: list[Run] = []
    for run in sorted(runs, key=lambda run: run.target):
        at, end = run.target, run.target + run.nbytes
        held = [(block.offset, block.offset + block.nbytes) for block in kept]
        for start, stop in [*((a, b) for a, b in held if b > at and a < end), (end, end)]:
            while at < min(start, end):
                nbytes = min(most_bytes, min(start, end) - at)
                spans.append(Run(run.source + at - run.target, at, nbytes))
                at += nbytes
            at = max(at, stop)
    return spans


def _wait_for(futures: Sequence[Future[None]]) -> None:
    done, _running = wait(futures, return_when=FIRST_EXCEPTION)
    faults = [fault for future in done if (fault := future.exception()) is not None]
    if faults:
        raise next((fault for fault in faults if not isinstance(fault, Stopped)), faults[0])


def _write_at(target: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        written = os.pwrite(target, chunk, offset)
        chunk, offset = chunk[written:], offset + written


def _digest_at(target: int, block: Block) -> str:
    hasher = blake3()
    at, end = block.offset, block.offset + block.nbytes
    while at < end:
        piece = os.pread(target, min(1 << 20, end - at), at)
        if not piece:
            return ""
        hasher.update(piece)
        at += len(piece)
    return hasher.hexdigest()
