# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of this process, and the weights that it holds."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from zpptool.witness.fingerprint import Fingerprint
from zpptool.witness.record import Weight

_CPU_INFO = Path("/proc/cpuinfo")


def fingerprint_here(engine: str, dtype: str | torch.dtype, device: torch.device) -> Fingerprint:
    """The fingerprint of what this process computes from now on.

    Args:
        engine: its name and release.
        dtype: of the weights and activations.
        device: where it computes.
    """
    name = "cpu" if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    return Fingerprint(
        engine=engine,
        torch=str(torch.__version__),
        device=name,
        processor=_processor(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        dtype=dtype_name(dtype),
    )


def dtype_name(dtype: str | torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def weights_in_memory(model: nn.Module) -> Iterator[Weight]:
    """The digests of a model's parameters and persistent buffers as they lie in memory now. Those on the meta device,
    which have no content, are left out."""
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and not tensor.is_meta:
            yield Weight(name, dtype_name(tensor.dtype), tuple(tensor.shape), digest(tensor))


def digest(tensor: Tensor) -> str:
    """BLAKE3 of a tensor's bytes, as a file of safetensors holds them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return blake3(flat.view(torch.uint8).numpy()).hexdigest() if flat.numel() else blake3(b"").hexdigest()


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first parameter of floating point."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


def _processor() -> str:
    """The model name of the CPU; the machine type where the system does not say it."""
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
