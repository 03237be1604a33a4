# SPDX-License-Identifier: Apache-2.0
"""Threads and NUMA nodes: stages that share a machine's cores must not all take all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zpptool.doctor.finding import Finding, ok, warning
from zpptool.doctor.target import Target

NODES = Path("/sys/devices/system/node")


def check_cpu(patient: Target) -> Iterator[Finding]:
    """Cores, nodes, and what OMP_NUM_THREADS and VLLM_CPU_OMP_THREADS_BIND say."""
    cores = len(os.sched_getaffinity(0))
    nodes = len(list(NODES.glob("node[0-9]*"))) or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "")
    yield cpu_finding(cores, nodes, max(len(patient.here), 1), threads, bound)


def cpu_finding(cores: int, nodes: int, stages: int, threads: str, bound: str) -> Finding:
    """What this many stages on these cores and NUMA nodes mean, with the two variables as they are set."""
    message = f"{cores} cores, {nodes} NUMA node{'s' if nodes > 1 else ''}"
    if threads and not threads.isdecimal():
        return warning("cpu", f"{message}; OMP_NUM_THREADS={threads} is no number", "Give each stage a whole number.")
    if stages > 1 and not bound and (not threads or int(threads) * stages > cores):
        share = max(cores // stages, 1)
        return warning(
            "cpu",
            f"{message}; {stages} stages here would each take {threads or 'all'}",
            f"On the CPU start each with OMP_NUM_THREADS={share}, or bind each with VLLM_CPU_OMP_THREADS_BIND.",
        )
    if nodes > 1 and not bound:
        return warning(
            "cpu", f"{message}; no binding", "On the CPU bind each stage to a node: numactl -N K -m K zpptool ..."
        )
    return ok("cpu", message)
