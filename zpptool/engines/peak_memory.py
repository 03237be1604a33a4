# SPDX-License-Identifier: Apache-2.0
"""The most memory that this process has used since a point in time, on the device that it computes on."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

from zpptool.engines.staging.device import device_apart

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Written to `clear_refs`, this sets the peak of the resident memory to what is resident now (proc(5))."""


class PeakMemory:
    """The peak of one device's memory.

    Args:
        device: where the process computes; on a CPU the process's resident memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._apart = device_apart(device) is not None
        self._device = device

    def reset(self) -> None:
        """Give free memory back to the system, and begin anew."""
        gc.collect()
        if self._apart:
            module = torch.get_device_module(self._device)
            module.empty_cache()
            module.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError, AttributeError):  # another allocator, or another C library
            ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)

    def bytes(self) -> int:
        """The peak since `reset`."""
        if self._apart:
            return int(torch.get_device_module(self._device).max_memory_reserved(self._device))
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device_apart(device) is not None:
        torch.get_device_module(device).synchronize(device)
