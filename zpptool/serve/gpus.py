# SPDX-License-Identifier: Apache-2.0
"""Whether the GPUs that are asked for are there, and hold the weights at least."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from zpptool.console import human_bytes
from zpptool.errors import ZppError, usage_error

NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits")


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
