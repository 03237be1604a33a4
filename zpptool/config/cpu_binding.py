# SPDX-License-Identifier: Apache-2.0
"""What each stage of a machine computes on: its threads and its cores, by vLLM's own variable for them, which is
passed on to OpenMP as vLLM's executor does for its workers, and the GPUs that `gpuplan` has chosen for it.

Only processes that compute are bound. A head on the cores of its stage would make every step of that stage wait for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from zpptool.errors import usage_error

VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
"""`auto`, `nobind`, or for each process a list of cores: `0-3|4,5`."""
_CORES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def own_binding(env: Mapping[str, str], sizes: Sequence[int]) -> list[str]:
    """Each stage's part of the variable; empty strings where it names no cores.

    Args:
        env: where it is looked for before this process's environment.
        sizes: each stage's tensor-parallel size: so many processes compute there.

    Raises:
        ZppError: (USAGE) it names cores for another number of processes, or no cores.
    """
    lists = _lists(env)
    if not lists:
        return [""] * len(sizes)
    if len(lists) != sum(sizes):
        raise usage_error(
            f"{VARIABLE} has {len(lists)} lists of cores, for {sum(sizes)} processes that compute",
            "Give one for each, with | between them, or leave it out.",
        )
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return ["|".join(lists[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def stage_environments(sizes: Sequence[int], devices: Sequence[Mapping[str, str]] = ()) -> list[dict[str, str]]:
    """What is added to the environment of each stage, where all are on this machine. Every process computes with as
    many threads: the order in which a sum is taken, and so its last bit, depends on it.

    Args:
        sizes: each stage's tensor-parallel size.
        devices: what shows each stage its GPUs (`gpuplan`); empty for none.

    Raises:
        ZppError: (USAGE) another number of lists of cores than there are processes that compute.
    """
    num_stages = len(sizes)
    cores = len(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores // num_stages, 1)))}
    made = [{**threads, **own} for own in devices or [{}] * num_stages]
    for env, bound in zip(made, own_binding({}, sizes), strict=True):
        if bound:
            env[VARIABLE] = bound
    return made


def openmp_environment(env: Mapping[str, str], rank: int, size: int) -> dict[str, str]:
    """What the process at a stage's tensor-parallel rank is to have in its environment, for the variable to hold.

    Args:
        env: as `own_binding` has it; names the cores of this stage alone.
        size: how many ranks the stage has.

    Raises:
        ZppError: as `own_binding`.
    """
    (own,) = own_binding(env, [size])
    if not own:
        return {}
    numbers = [number for part in own.split("|")[rank].split(",") for number in _numbers(part)]
    return {
        "OMP_NUM_THREADS": str(len(numbers)),
        "OMP_PLACES": f"{{{','.join(map(str, numbers))}}}",
        "OMP_PROC_BIND": "true",
    }


def _lists(env: Mapping[str, str]) -> list[str]:
    told = env.get(VARIABLE, os.environ.get(VARIABLE, ""))
    lists = [] if told in ("", "auto", "nobind") else told.split("|")
    for cores in lists:
        if not _CORES.fullmatch(cores):
            raise usage_error(f"{VARIABLE}: {cores!r} is no list of cores", "Write 0-3 or 0,2,4, for example.")
    return lists


def _numbers(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
