# SPDX-License-Identifier: Apache-2.0
"""What is looked at before anything is started: is there the memory, are there the GPUs, for the weights at least.

Only what is certain to fail is refused. Activations and KV caches come on top of the weights, and engines size them by
what they find.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from zpptool.checkpoint.loading import load_plan
from zpptool.console import human_bytes
from zpptool.errors import ZppError, usage_error
from zpptool.pipeline.spec import StageSpec

CGROUP = Path("/sys/fs/cgroup")
"""cgroup v2 as a container sees its own; see memory.max and memory.current in the kernel's cgroup-v2.rst."""
NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits")
ITEMSIZES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
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


def gpus() -> dict[str, int] | None:
    """The bytes that are free on each GPU, by index and by uuid; None where there is no nvidia-smi to ask."""
    if shutil.which(NVIDIA_QUERY[0]) is None:
        return None
    try:
        asked = subprocess.run(NVIDIA_QUERY, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpus(asked.stdout)


def parse_gpus(text: str) -> dict[str, int]:
    """What nvidia-smi prints for `NVIDIA_QUERY`: `0, GPU-5f..., 40100`, the last in MiB, a line a GPU."""
    free = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[2].isdecimal():
            free[fields[0]] = free[fields[1]] = int(fields[2]) << 20
    return free


def refuse_gpus(gpu_ids: Sequence[str], needed: Sequence[int], found: Mapping[str, int] | None) -> None:
    """Refuse GPUs that are not there, or that cannot hold the weights of the stages that are to share them.

    Raises:
        ZppError: (USAGE) there is no such GPU; (FAILURE) the weights do not fit.
    """
    if found is None:
        raise usage_error(
            f"--gpu-ids {','.join(gpu_ids)}: nvidia-smi finds no GPU on this machine", "Leave it out to run on the CPU."
        )
    for gpu in dict.fromkeys(gpu_ids):
        if gpu not in found:
            known = ", ".join(name for name in found if name.isdecimal()) or "none"
            raise usage_error(f"--gpu-ids: there is no GPU {gpu} on this machine", f"There are {known}.")
        weights = sum(size for own, size in zip(gpu_ids, needed, strict=True) if own == gpu)
        if weights > found[gpu]:
            raise ZppError(
                f"GPU {gpu} has {human_bytes(found[gpu])} free, and the weights for it take {human_bytes(weights)}",
                "Give that stage fewer layers (--ranges), or another GPU.",
            )
