# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's memory holds its stages, for the weights at least, and what is left for their KV caches.

Only what is certain to fail is refused. Activations and KV caches come on top of the weights, and engines size them by
what they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.console import human_bytes
from zpptool.errors import ZppError

CGROUP = Path("/sys/fs/cgroup")
"""cgroup v2 as a container sees its own; see memory.max and memory.current in the kernel's cgroup-v2.rst."""
ITEMSIZES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
KV_SHARE = 0.5
"""How much of the memory that the weights leave vLLM's stages on one CPU share for their KV caches."""
MOST_KV_BYTES = 4 << 30
_STORED = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def stage_bytes(spec: StageSpec) -> int:
    """What the weights of a stage take once loaded: floating-point ones in the dtype that is computed in.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read or cut so.
    """
    itemsize = ITEMSIZES.get(spec.dtype)
    total = 0
    for tensor in load_plan(spec.directory, spec.stage, spec.ranges):
        stored = _STORED.get(tensor.dtype)
        total += tensor.nbytes * itemsize // stored if itemsize and stored else tensor.nbytes
    return total


def free_memory() -> int:
    """Bytes of memory that this machine, or this container, has left."""
    left = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        most = (CGROUP / "memory.max").read_text().strip()
        if most != "max":
            left = min(left, int(most) - int((CGROUP / "memory.current").read_text()))
    return max(left, 0)


def refuse_too_much(needed: Sequence[int], free: int) -> None:
    """Refuse weights that this machine's memory cannot hold together.

    Args:
        needed: bytes, of each stage that is to run here.
        free: bytes.

    Raises:
        ZppError: (FAILURE) they do not fit.
    """
    if sum(needed) > free:
        raise ZppError(
            f"the weights of all stages take {human_bytes(sum(needed))}, and {human_bytes(free)} of memory are free",
            "Run fewer stages on this machine (zpptool plan --hosts), or end what else takes memory.",
        )


def kv_share(needed: Sequence[int], free: int) -> int:
    """How many bytes each of several stages on one CPU takes for its KV cache where nobody says: vLLM would give one
    worker nearly all memory that there is.

    Args:
        needed, free: as `refuse_too_much` has them, and passed by it.
    """
    return min(int((free - sum(needed)) * KV_SHARE / len(needed)), MOST_KV_BYTES)
