# SPDX-License-Identifier: Apache-2.0
"""Waits until a device has the memory that a stage is about to take.

The driver frees the memory of a process that was killed some time after the process has ended. A stage that replaces it
could find its GPU still full, and would fail with an error that says nothing of the cause. So it waits, within bounds,
before it takes anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple

import torch

LONGEST_S = 60.0
"""The longest wait, in seconds."""
STILL_S = 15.0
"""A wait ends when nothing has become free for so many seconds: a process that runs has the memory."""
POLL_S = 0.5
GIB = 1 << 30


class FreeMemory(NamedTuple):
    """A look at a device.

    Attributes:
        at_s: when, in seconds of a monotonic clock.
        free: bytes that no process has taken.
    """

    at_s: float
    free: int


class Verdict(Enum):
    """What to do after a look."""

    LOAD = auto()
    WAIT = auto()
    GIVE_UP = auto()


class DeviceMemory(NamedTuple):
    """A device's memory, in bytes: what is free, and all of it."""

    free: int
    total: int


def judge(needed: int, looks: Sequence[FreeMemory]) -> Verdict:
    """Whether to load now, given all looks so far, at least one.

    Args:
        needed: bytes that the stage takes.
        looks: in the order of time.
    """
    first, last = looks[0], looks[-1]
    if last.free >= needed:
        return Verdict.LOAD
    grown = [later.at_s for earlier, later in pairwise(looks) if later.free > earlier.free]
    still_s = last.at_s - (grown[-1] if grown else first.at_s)
    return Verdict.GIVE_UP if last.at_s - first.at_s >= LONGEST_S or still_s >= STILL_S else Verdict.WAIT


def await_free_memory(
    needed: int,
    read_free: Callable[[], int],
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until so many bytes are free, or no longer than `judge` says: then the engine itself refuses, or fits.

    Args:
        needed: bytes that the stage takes.
        read_free: returns the free bytes of its device now.
        log: of the stage.
        clock: a monotonic clock, in seconds.
        sleep: waits so many seconds.
    """
    looks = [FreeMemory(clock(), read_free())]
    if judge(needed, looks) is Verdict.LOAD:
        return
    log.info(
        "waiting for memory of the device: %.1f GiB are free and %.1f GiB are needed; a process that has ended may"
        " still hold the rest",
        looks[0].free / GIB,
        needed / GIB,
    )
    while (verdict := judge(needed, looks)) is Verdict.WAIT:
        sleep(POLL_S)
        looks.append(FreeMemory(clock(), read_free()))
    waited_s = looks[-1].at_s - looks[0].at_s
    if verdict is Verdict.LOAD:
        log.info("the memory of the device is free after %.1f s", waited_s)
    else:
        log.warning(
            "after %.1f s only %.1f GiB of the device's memory are free: another process has the rest", waited_s,
            looks[-1].free / GIB,
        )  # fmt: skip


def await_device_memory(
    device: torch.device,
    needed: Callable[[DeviceMemory], int],
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> None:
    """Wait until a device has what a stage takes. On a CPU, and where torch cannot tell, there is no wait.

    Args:
        device: where the stage computes.
        needed: returns the bytes that the stage takes of such a device.
        log: of the stage.
    """
    memory = memory_of(device)
    if memory is not None:
        await_free_memory(needed(memory), lambda: (memory_of(device) or memory).free, log)


def memory_of(device: torch.device) -> DeviceMemory | None:
    """The memory of a device; None for the CPU, and where torch cannot tell."""
    if device.type == "cpu":
        return None
    read = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if read is None else DeviceMemory(*read(device))
