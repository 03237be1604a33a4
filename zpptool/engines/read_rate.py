# SPDX-License-Identifier: Apache-2.0
"""How fast this process reads weights from their files onto its device, with the reader that stages use."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from zpptool.checkpoint.index import TensorInfo
from zpptool.engines.peak_memory import synchronize
from zpptool.engines.weights import read_tensors
from zpptool.errors import invalid_error

MOST_BYTES = 1 << 30
"""More is not read for a measurement."""


def read_rate(tensors: Sequence[TensorInfo], device: torch.device) -> float:
    """Read tensors from the disk onto the device; bytes per second.

    The kernel is asked to forget the files first, as they are not in memory either when a host starts. Where it does
    not (a file that is mapped, or a filesystem without a disk), the rate is that of memory.

    Raises:
        ZppError: (INVALID) there are no tensors, or they cannot be read.
    """
    chosen, total = [], 0
    for tensor in tensors:
        if total < MOST_BYTES:
            chosen.append(tensor)
            total += tensor.nbytes
    if not total:
        raise invalid_error("this part of the model has no weights to read")
    for path in {tensor.file for tensor in chosen}:
        _forget(path)
    began = time.perf_counter()
    for _name, read in read_tensors(chosen):
        read.to(device)
    synchronize(device)
    return total / max(time.perf_counter() - began, 1e-9)


def _forget(path: Path) -> None:
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
