# SPDX-License-Identifier: Apache-2.0
"""Activations between a device and host memory, beside the computation: pinned buffers, a stream of its own, events.

A stage on an accelerator must not wait, with all that it has queued, for a copy: what it sends is copied on a side
stream once it is computed, and leaves from another thread when it has arrived in host memory; what it receives is
copied from pinned memory on the side stream, and the computation waits for that on the device. Written to the API that
all of torch's devices share (`torch.get_device_module`). Tested with the CPU's, whose streams do nothing; untested on a
GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class DeviceStaging:
    """The side stream of one device, and the thread that sends what it has copied.

    Args:
        device: where this stage computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._api = torch.get_device_module(device)
        self._pinned = device.type != "cpu"
        self._stream = self._api.Stream()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="stage-send")  # one: what is sent keeps its order

    def send(self, values: Mapping[str, Any], send: Callable[[dict[str, Any]], Callable[[], None]]) -> Future[None]:
        """Copy to host memory what is being computed, then send it.

        Args:
            values: tensors on the device, and plain values.
            send: sends the values, with tensors in host memory, and returns what waits until that memory is free.

        Returns:
            done when the device's tensors may be written again and all has been sent; it holds what went wrong.
        """
        arrived = self._api.Event()
        self._stream.wait_stream(self._api.current_stream())
        with self._api.stream(self._stream):
            host = {name: self._to_host(value) for name, value in values.items()}
            arrived.record(self._stream)

        def leave() -> None:
            arrived.synchronize()
            send(host)()

        return self._sender.submit(leave)

    def receive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What was received, in host memory, on the device; the current stream waits for it, this thread does not."""
        with self._api.stream(self._stream):
            there = {name: self._to_device(value) for name, value in values.items()}
        current = self._api.current_stream()
        current.wait_stream(self._stream)
        for value in there.values():
            if isinstance(value, torch.Tensor) and self._pinned:
                value.record_stream(current)
        return there

    def close(self) -> None:
        """Send what is under way, and end the thread."""
        self._sender.shutdown()

    def _to_host(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=self._pinned)
        host.copy_(value, non_blocking=True)
        if self._pinned:
            value.record_stream(self._stream)  # its memory is not given away before the copy
        return host

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        pinned = value.pin_memory() if self._pinned else value
        return pinned.to(self._device, non_blocking=True, copy=True)
