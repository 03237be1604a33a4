# SPDX-License-Identifier: Apache-2.0
"""Plan the weight files of a stage: which tensors each holds, in which order, and where the bytes come from.

A weight file takes its tensors from one source file. If all tensors of a source file go to one stage, the file is taken
unchanged, including its header, so that it can be shared instead of copied. Otherwise new files of limited size are
written; the header is padded so that the longest run of bytes has the same alignment to file system blocks as in the
source, and can be shared too. None of this depends on the copy mode: every mode produces the same files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from zpptool.checkpoint.header import BLOCK_BYTES, DTYPE_BITS, LENGTH_BYTES, Header, TensorInfo, write_header
from zpptool.checkpoint.index import SINGLE_NAME

MAX_SHARD_BYTES = 5_000_000_000
"""Maximum size of a newly written weight file; a single tensor may be larger."""
MIN_SHARED_BYTES = 1024 * 1024
"""Minimum length in bytes of a run for which the header is padded so that it can be shared."""


class Run(NamedTuple):
    """Bytes that are contiguous in the source and in the target: their offsets and length, in bytes."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True)
class ShardPlan:
    """One weight file to write.

    Attributes:
        name: name of the file.
        header: header of the source file.
        tensors: in the order in which they are written.
        whole: whether the source file is taken unchanged.
    """

    name: str
    header: Header
    tensors: tuple[TensorInfo, ...]
    whole: bool

    @property
    def source(self) -> Path:
        """The source file."""
        return self.header.file

    @property
    def nbytes(self) -> int:
        """Total size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def head(self) -> bytes:
        """The header bytes before the tensor data; raises OSError if they have to be read and cannot be."""
        if self.whole:
            return read_head(self.header)
        longest = max(self._source_runs(), key=lambda run: run.nbytes, default=Run(0, 0, 0))
        phase = (longest.source - longest.target) % BLOCK_BYTES
        shared = longest.nbytes >= MIN_SHARED_BYTES and phase % LENGTH_BYTES == 0
        return write_header(self.tensors, self.header.metadata, phase if shared else None)

    def runs(self) -> list[Run]:
        """Return the source and target ranges of the tensor data, merged where they are contiguous."""
        start = len(self.head)
        return [Run(run.source, start + run.target, run.nbytes) for run in self._source_runs()]

    def _source_runs(self) -> list[Run]:
        runs: list[Run] = []
        reached = 0
        for tensor in self.tensors:
            if runs and runs[-1].source + runs[-1].nbytes == tensor.offset:
                runs[-1] = runs[-1]._replace(nbytes=runs[-1].nbytes + tensor.nbytes)
            else:
                runs.append(Run(tensor.offset, reached, tensor.nbytes))
            reached += tensor.nbytes
        return runs


def read_head(header: Header) -> bytes:
    """Return the header bytes of a source file."""
    with header.file.open("rb", buffering=0) as stream:
        return stream.read(header.header_bytes)


def plan_shards(
    tensors: Sequence[TensorInfo], headers: Mapping[Path, Header], max_bytes: int = MAX_SHARD_BYTES
) -> tuple[ShardPlan, ...]:
    """Plan the weight files of a stage that holds `tensors`.

    In a newly written file wider dtypes come first, as safetensors itself orders them, so that every tensor stays
    aligned to its element size.

    Args:
        tensors: the tensors of the stage.
        headers: the headers of the source files, by path.
        max_bytes: maximum size of a newly written file.
    """
    by_file: dict[Path, list[TensorInfo]] = defaultdict(list)
    for tensor in tensors:
        by_file[tensor.file].append(tensor)
    pieces: list[tuple[Header, Sequence[TensorInfo], bool]] = []
    for file, selected in by_file.items():
        header = headers[file]
        if len(selected) == len(header.tensors):
            pieces.append((header, header.tensors, True))
            continue
        ordered = sorted(selected, key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.offset))
        pieces += ((header, piece, False) for piece in _portions(ordered, max_bytes))
    total = len(pieces)
    return tuple(
        ShardPlan(_name(number, total), header, tuple(selected), whole)
        for number, (header, selected, whole) in enumerate(pieces, 1)
    )


def _name(number: int, total: int) -> str:
    return SINGLE_NAME if total == 1 else f"model-{number:05}-of-{total:05}.safetensors"


def _portions(tensors: Sequence[TensorInfo], max_bytes: int) -> Iterable[list[TensorInfo]]:
    portion: list[TensorInfo] = []
    held = 0
    for tensor in tensors:
        if portion and held + tensor.nbytes > max_bytes:
            yield portion
            portion, held = [], 0
        portion.append(tensor)
        held += tensor.nbytes
    if portion:
        yield portion
