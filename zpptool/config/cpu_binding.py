# SPDX-License-Identifier: Apache-2.0
"""What each stage of a machine computes on: its number of threads, its cores, and the GPUs chosen for it (`gpu_plan`).

Cores are given by vLLM's own variable and passed on to OpenMP as vLLM's executor does for its workers. Only processes
that compute are bound: a head on the cores of its stage would delay every step of that stage.
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
        env: searched before this process's environment.
        sizes: each stage's tensor-parallel size, the number of processes that compute there.

    Raises:
        ZppError: (USAGE) the variable has another number of lists than there are processes, or an invalid list.
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
    """Additions to the environment of each stage, where all stages are on this machine.

    Every process computes with the same number of threads, because the order of a summation, and so the last bit of
    its result, depends on that number.

    Args:
        sizes: each stage's tensor-parallel size.
        devices: the variables that show each stage its GPUs (`gpu_plan`); empty for none.

    Raises:
        ZppError: (USAGE) the number of lists of cores is not that of the processes that compute.
    """
    num_stages = len(sizes)
    cores = len(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores // num_stages, 1)))}
    environments = [{**threads, **own} for own in devices or [{}] * num_stages]
    for env, bound in zip(environments, own_binding({}, sizes), strict=True):
        if bound:
            env[VARIABLE] = bound
    return environments


def openmp_environment(env: Mapping[str, str], rank: int, size: int) -> dict[str, str]:
    """The OpenMP variables that bind one process of a stage to its cores; empty where no cores are named.

    Args:
        env: as for `own_binding`, with the cores of this stage alone.
        rank: the process's tensor-parallel rank.
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
    """The list of cores of every process, as text; none for a value that names no cores."""
    value = env.get(VARIABLE, os.environ.get(VARIABLE, ""))
    lists = [] if value in ("", "auto", "nobind") else value.split("|")
    for cores in lists:
        if not _CORES.fullmatch(cores):
            raise usage_error(f"{VARIABLE}: {cores!r} is not a list of cores", "Write 0-3 or 0,2,4, for example.")
    return lists


def _numbers(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
