# SPDX-License-Identifier: Apache-2.0
"""Host memory, shared memory, disk and file descriptors: enough for the stages of this machine?"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from zpptool.console import human_bytes
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

MIB = 1 << 20
SHM_PATH = Path("/dev/shm")
LEAST_SHM = 64 * MIB
"""What a container gets by default; vLLM's processes of one stage pass messages through it."""
LEAST_FILES = 4096
LEAST_DISK = 1 << 30


def check_memory(patient: Target) -> Iterator[Finding]:
    """What is free, against the weights of this machine's stages."""
    import psutil

    yield memory_finding(psutil.virtual_memory().available, sum(place.weight_bytes for place in patient.places))


def memory_finding(available: int, weights: int) -> Finding:
    """Host memory in bytes against weights in bytes; on a GPU weights do not stay in it, so this only warns."""
    message = f"{human_bytes(available)} free"
    if weights > available:
        return warning(
            "memory",
            f"{message}, the stages' weights take {human_bytes(weights)}",
            "On a CPU this will not fit: use more hosts, or end what takes it.",
        )
    return ok("memory", message)


def check_shared_memory(_patient: Target) -> Iterator[Finding]:
    """/dev/shm: is it there and large enough?"""
    if not SHM_PATH.is_dir():
        yield blocker("shared memory", f"there is no {SHM_PATH}", "Mount a tmpfs there.")
        return
    yield shared_memory_finding(shutil.disk_usage(SHM_PATH).free)


def shared_memory_finding(free: int) -> Finding:
    """Free bytes of /dev/shm."""
    if free <= LEAST_SHM:
        return warning(
            "shared memory",
            f"{human_bytes(free)} free in {SHM_PATH}",
            "docker: --shm-size 1g; Kubernetes: an emptyDir of medium Memory at /dev/shm.",
        )
    return ok("shared memory", f"{human_bytes(free)} free in {SHM_PATH}")


def check_files(_patient: Target) -> Iterator[Finding]:
    """How many files a process may open."""
    yield files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def files_finding(limit: int) -> Finding:
    """The soft limit of open files; one API connection takes one."""
    if 0 <= limit < LEAST_FILES:
        return warning("open files", f"at most {limit}", "ulimit -n 65536 (systemd: LimitNOFILE=65536)")
    return ok("open files", "no limit" if limit < 0 else f"at most {limit}")


def check_disk(patient: Target) -> Iterator[Finding]:
    """Room where the model lies, or where this command runs: for a split and for logs."""
    place = patient.directory if patient.directory and patient.directory.exists() else Path.cwd()
    yield disk_finding(place, shutil.disk_usage(place).free)


def disk_finding(place: Path, free: int) -> Finding:
    """Free bytes of the file system of `place`."""
    if free < LEAST_DISK:
        return warning("disk", f"{human_bytes(free)} free at {place}", "Make room, or let --output-dir lie elsewhere.")
    return ok("disk", f"{human_bytes(free)} free at {place}")
