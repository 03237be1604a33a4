# SPDX-License-Identifier: Apache-2.0
"""What staging needs of a device: streams, events, memory, and copies that are queued on a stream.

Staging is written against `Device`, so that its order can be proven with a device that records what is queued on it and
delays it (`scripts/gpucheck/stub_device.py`). `TorchDevice` is the real one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Any) -> None:
        """Mark the end of what is queued on a stream now."""
        ...

    def synchronize(self) -> None:
        """Block this thread until the stream has reached the point that was recorded last."""
        ...


class Stream(Protocol):
    """A queue of work that a device does in order."""

    def wait_event(self, event: Any) -> None:
        """Have what is queued from now on wait for the point that `event` has recorded last. Does not block."""
        ...


class Device(Protocol):
    """A device whose memory is apart from the host's."""

    def new_stream(self) -> Stream:
        """Another stream of the device."""
        ...

    def current_stream(self) -> Stream:
        """The stream on which the calling thread queues its computations."""
        ...

    def new_event(self) -> Event:
        """An event that has recorded nothing. A thread that waits for it sleeps."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Within this context `copy` and `zero` queue on that stream."""
        ...

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """So many bytes of host memory that the device reads and writes while the host continues."""
        ...

    def device_memory(self, nbytes: int) -> torch.Tensor:
        """So many bytes of the device's memory. They belong to the current stream: what is queued elsewhere has to wait
        for an event that was recorded on it after this call."""
        ...

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy between the device and host memory of `host_memory`."""
        ...

    def zero(self, memory: torch.Tensor) -> None:
        """Queue that memory of the device is set to zero."""
        ...

    def fill(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """Copy from host memory into that of `host_memory`, now."""
        ...


class TorchDevice:
    """A device of torch.

    Args:
        device: which one.
        module: torch's module for its kind, for example `torch.cuda`.
    """

    def __init__(self, device: torch.device, module: ModuleType) -> None:
        self._device = device
        self._module = module

    def new_stream(self) -> Any:
        """See `Device.new_stream`."""
        return self._module.Stream(self._device)

    def current_stream(self) -> Any:
        """See `Device.current_stream`."""
        return self._module.current_stream(self._device)

    def new_event(self) -> Any:
        """See `Device.new_event`. Only CUDA's events (and ROCm's, which are the same) can be asked to let a thread
        sleep."""
        return self._module.Event(blocking=True) if self._device.type == "cuda" else self._module.Event()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """See `Device.on`."""
        context: AbstractContextManager[Any] = self._module.stream(stream)
        return context

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """See `Device.host_memory`."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def device_memory(self, nbytes: int) -> torch.Tensor:
        """See `Device.device_memory`."""
        return torch.zeros(nbytes, dtype=torch.uint8, device=self._device)

    @torch.inference_mode()
    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """See `Device.copy`."""
        into.copy_(source, non_blocking=True)

    @torch.inference_mode()
    def zero(self, memory: torch.Tensor) -> None:
        """See `Device.zero`."""
        memory.zero_()

    @torch.inference_mode()
    def fill(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """See `Device.fill`."""
        into.copy_(source)


def device_apart(device: torch.device | None) -> Device | None:
    """The device to stage through, where its memory is apart from the host's and torch has streams for it; None for the
    CPU, and for devices that copy without streams (MPS)."""
    if device is None or device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    if not all(hasattr(module, name) for name in ("Stream", "Event", "stream", "current_stream")):
        return None
    return TorchDevice(device, module)
