# SPDX-License-Identifier: Apache-2.0
"""A name for the kind of device that this process computes on, for the file of its profile."""

from __future__ import annotations

import os
import platform
import re

import torch

from zpptool.engines.staging.device import device_apart


def device_name(device: torch.device) -> str:
    """The device's own name, in lower case with hyphens; for a CPU its architecture and the number of cores that this
    process may use (`cpu-x86-64-2`)."""
    if device_apart(device) is None:
        return _slug(f"cpu-{platform.machine()}-{len(os.sched_getaffinity(0))}")
    module = torch.get_device_module(device)
    return _slug(module.get_device_name(device) if hasattr(module, "get_device_name") else device.type)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
