# SPDX-License-Identifier: Apache-2.0
"""Has the kernel read files into its cache before they are wanted, where there is room.

Nothing waits here, and nothing is taken: cached pages are the first that the kernel gives to whoever needs memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

from zpptool.checkpoint.index import TensorInfo
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError

MOST_OF_AVAILABLE = 0.5
"""The weights may take so much of the memory that is available, or they are not read ahead."""


def has_room(nbytes: int, available: int) -> bool:
    """Whether so many bytes may be read ahead."""
    return nbytes <= available * MOST_OF_AVAILABLE


def weights_of(specs: Iterable[StageSpec]) -> list[TensorInfo]:
    """The tensors of all these stages, each once; of one whose directory cannot be read, none."""
    found: dict[tuple[str, int], TensorInfo] = {}
    for spec in specs:
        with suppress(ZppError):
            for tensor in load_plan(spec.directory, spec.stage, spec.ranges):
                found[str(tensor.file), tensor.offset] = tensor
    return list(found.values())


def read_ahead(tensors: Sequence[TensorInfo]) -> bool:
    """Ask for the bytes of these tensors, unless memory is short; whether they were asked for."""
    if not has_room(sum(tensor.nbytes for tensor in tensors), psutil.virtual_memory().available):
        return False
    for path in {tensor.file for tensor in tensors}:
        with suppress(OSError), open(path, "rb", buffering=0) as file:
            for tensor in tensors:
                if tensor.file == path:
                    os.posix_fadvise(file.fileno(), tensor.offset, tensor.nbytes, os.POSIX_FADV_WILLNEED)
    return True
