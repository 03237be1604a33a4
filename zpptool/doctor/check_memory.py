# SPDX-License-Identifier: Apache-2.0
"""Check that host memory, shared memory, disk and file descriptors suffice for the stages of this machine."""

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
"""The default size of /dev/shm in a container, in bytes. vLLM's processes of one stage exchange messages through it."""
LEAST_FILES = 4096
LEAST_DISK = 1 << 30


def check_memory(target: Target) -> Iterator[Finding]:
    """Compare free host memory with the weights of this machine's stages."""
    import psutil

    yield memory_finding(psutil.virtual_memory().available, sum(place.weight_bytes for place in target.places))


def memory_finding(available: int, weights: int) -> Finding:
    """Compare free host memory with weights, in bytes. It only warns: weights on a GPU do not stay in host memory."""
    message = f"{human_bytes(available)} free"
    if weights > available:
        return warning(
            "memory",
            f"{message}, the stages' weights take {human_bytes(weights)}",
            "On a CPU they will not fit: use more hosts, or free memory.",
        )
    return ok("memory", message)


def check_shared_memory(_target: Target) -> Iterator[Finding]:
    """Check that /dev/shm exists and is large enough."""
    if not SHM_PATH.is_dir():
        yield blocker("shared memory", f"{SHM_PATH} does not exist", "Mount a tmpfs there.")
        return
    yield shared_memory_finding(shutil.disk_usage(SHM_PATH).free)


def shared_memory_finding(free: int) -> Finding:
    """Judge the free space of /dev/shm, in bytes."""
    if free <= LEAST_SHM:
        return warning(
            "shared memory",
            f"{human_bytes(free)} free in {SHM_PATH}",
            "docker: --shm-size 1g; Kubernetes: an emptyDir of medium Memory at /dev/shm.",
        )
    return ok("shared memory", f"{human_bytes(free)} free in {SHM_PATH}")


def check_files(_target: Target) -> Iterator[Finding]:
    """Check the limit on open files."""
    yield files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def files_finding(limit: int) -> Finding:
    """Judge the soft limit on open files, negative for no limit; each API connection takes one."""
    if 0 <= limit < LEAST_FILES:
        return warning("open files", f"at most {limit}", "ulimit -n 65536 (systemd: LimitNOFILE=65536)")
    return ok("open files", "no limit" if limit < 0 else f"at most {limit}")


def check_disk(target: Target) -> Iterator[Finding]:
    """Check the free disk space at the model, or in the working directory: for a split and for logs."""
    place = target.directory if target.directory and target.directory.exists() else Path.cwd()
    yield disk_finding(place, shutil.disk_usage(place).free)


def disk_finding(place: Path, free: int) -> Finding:
    """Judge the free space of the file system of `place`, in bytes."""
    if free < LEAST_DISK:
        return warning(
            "disk", f"{human_bytes(free)} free at {place}", "Free disk space, or choose an --output-dir elsewhere."
        )
    return ok("disk", f"{human_bytes(free)} free at {place}")
