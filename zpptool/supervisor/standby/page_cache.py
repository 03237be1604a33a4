# SPDX-License-Identifier: Apache-2.0
"""Has the kernel read weights into its page cache before they are needed, if memory has room.

Nothing here waits, and no process owns the memory: cached pages are the first that the kernel reclaims.
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

MAX_SHARE = 0.5
"""Weights are read ahead if they take at most this share of the available memory."""


def has_room(nbytes: int, available: int) -> bool:
    """Whether this many bytes may be read ahead.

    Args:
        nbytes: of the weights.
        available: bytes of memory that are available.
    """
    return nbytes <= available * MAX_SHARE


def weights_of(specs: Iterable[StageSpec]) -> list[TensorInfo]:
    """The tensors of all these stages, each once; none of a stage whose directory cannot be read."""
    found: dict[tuple[str, int], TensorInfo] = {}
    for spec in specs:
        with suppress(ZppError):
            for tensor in load_plan(spec.directory, spec.stage, spec.ranges):
                found[str(tensor.file), tensor.offset] = tensor
    return list(found.values())


def read_ahead(tensors: Sequence[TensorInfo]) -> bool:
    """Ask the kernel to read these tensors, unless memory is short; return whether it was asked."""
    if not has_room(sum(tensor.nbytes for tensor in tensors), psutil.virtual_memory().available):
        return False
    for path in {tensor.file for tensor in tensors}:
        with suppress(OSError), open(path, "rb", buffering=0) as file:
            for tensor in tensors:
                if tensor.file == path:
                    os.posix_fadvise(file.fileno(), tensor.offset, tensor.nbytes, os.POSIX_FADV_WILLNEED)
    return True
