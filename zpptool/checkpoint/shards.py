# SPDX-License-Identifier: Apache-2.0
"""The weight files of a stage, planned: which tensors each holds, in which order, and from where its bytes come.

A weight file takes its tensors from one source file. A source file whose tensors all go to one stage is taken as it is,
head and all, so that it can be shared instead of copied. Any other is written anew, in files of moderate size, its head
padded so that its longest run of bytes lies in the file system's blocks as it lies in the source: such a run can be
shared too. None of this depends on how the bytes then travel, so that every way makes the same files.
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
"""Of a weight file that is written anew; one tensor alone may be larger."""
MIN_SHARED_BYTES = 1024 * 1024
"""A run that is shorter is not worth the padding that sharing asks for."""


class Run(NamedTuple):
    """Bytes that lie together in the source and in the target."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True)
class ShardPlan:
    """One weight file to write.

    Attributes:
        name: of the file.
        header: of the source file.
        tensors: in the order in which they are written.
        whole: the source file is taken as it is.
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
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def head(self) -> bytes:
        """All that comes before the tensor data; raises OSError where it has to be read."""
        if self.whole:
            return read_head(self.header)
        longest = max(self._source_runs(), key=lambda run: run.nbytes, default=Run(0, 0, 0))
        phase = (longest.source - longest.target) % BLOCK_BYTES
        shared = longest.nbytes >= MIN_SHARED_BYTES and phase % LENGTH_BYTES == 0
        return write_header(self.tensors, self.header.metadata, phase if shared else None)

    def runs(self) -> list[Run]:
        """Where the tensor data comes from and goes to, in few pieces."""
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
    """The head of a source file, as it is."""
    with header.file.open("rb", buffering=0) as stream:
        return stream.read(header.header_bytes)


def plan_shards(
    tensors: Sequence[TensorInfo], headers: Mapping[Path, Header], max_bytes: int = MAX_SHARD_BYTES
) -> tuple[ShardPlan, ...]:
    """The weight files of a stage that holds `tensors`.

    Where a file is written anew, wider dtypes come first, as safetensors itself orders them, so that every tensor stays
    aligned to its element.
    """
    by_file: dict[Path, list[TensorInfo]] = defaultdict(list)
    for tensor in tensors:
        by_file[tensor.file].append(tensor)
    pieces: list[tuple[Header, Sequence[TensorInfo], bool]] = []
    for file, own in by_file.items():
        header = headers[file]
        if len(own) == len(header.tensors):
            pieces.append((header, header.tensors, True))
            continue
        ordered = sorted(own, key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.offset))
        pieces += ((header, piece, False) for piece in _portions(ordered, max_bytes))
    total = len(pieces)
    return tuple(
        ShardPlan(_name(number, total), header, tuple(own), whole)
        for number, (header, own, whole) in enumerate(pieces, 1)
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
