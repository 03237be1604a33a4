# SPDX-License-Identifier: Apache-2.0
"""Check threads and NUMA nodes: stages on one machine must not each use all of its cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zpptool.doctor.finding import Finding, ok, warning
from zpptool.doctor.target import Target

NODES = Path("/sys/devices/system/node")


def check_cpu(target: Target) -> Iterator[Finding]:
    """Check cores, NUMA nodes, OMP_NUM_THREADS and VLLM_CPU_OMP_THREADS_BIND."""
    cores = len(os.sched_getaffinity(0))
    nodes = len(list(NODES.glob("node[0-9]*"))) or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "")
    yield cpu_finding(cores, nodes, max(len(target.here), 1), threads, bound)


def cpu_finding(cores: int, nodes: int, stages: int, threads: str, bound: str) -> Finding:
    """Judge the thread settings of the stages of this machine.

    Args:
        cores: number of cores this process may use.
        nodes: number of NUMA nodes.
        stages: number of stages on this machine.
        threads: the value of OMP_NUM_THREADS; empty if it is not set.
        bound: the value of VLLM_CPU_OMP_THREADS_BIND; empty if it is not set.
    """
    message = f"{cores} cores, {nodes} NUMA node{'s' if nodes > 1 else ''}"
    if threads and not threads.isdecimal():
        return warning(
            "cpu", f"{message}; OMP_NUM_THREADS={threads} is not a number", "Set it to a whole number for each stage."
        )
    if stages > 1 and not bound and (not threads or int(threads) * stages > cores):
        share = max(cores // stages, 1)
        return warning(
            "cpu",
            f"{message}; {stages} stages here would each use {threads or 'all'}",
            f"On the CPU start each with OMP_NUM_THREADS={share}, or bind each with VLLM_CPU_OMP_THREADS_BIND.",
        )
    if nodes > 1 and not bound:
        return warning(
            "cpu", f"{message}; no binding", "On the CPU bind each stage to a node: numactl -N K -m K zpptool ..."
        )
    return ok("cpu", message)
