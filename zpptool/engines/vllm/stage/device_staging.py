# SPDX-License-Identifier: Apache-2.0
"""Copies activations between a device and host memory while the device computes, with pinned buffers, a side stream
and events.

A stage on an accelerator must not wait for a copy together with all that it has queued. Outputs are copied on a side
stream as soon as they are computed, and another thread sends them when they have arrived in host memory. Inputs are
copied from pinned memory on the side stream, and only the device waits for that copy. The code uses the API that all of
torch's devices share (`torch.get_device_module`). Tested on the CPU, whose streams do nothing; untested on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class DeviceStaging:
    """The side stream of one device, and the thread that sends what was copied.

    Args:
        device: where this stage computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._api = torch.get_device_module(device)
        self._pinned = device.type != "cpu"
        self._stream = self._api.Stream()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="stage-send")  # a single thread keeps the order

    def send(self, values: Mapping[str, Any], send: Callable[[dict[str, Any]], Callable[[], None]]) -> Future[None]:
        """Copy values that are being computed to host memory, then send them.

        Args:
            values: tensors on the device, and plain values.
            send: sends the values, with tensors in host memory, and returns a function that waits until that memory may
                be written again.

        Returns:
            a future that is done when the device's tensors may be written again and all has been sent.
        """
        arrived = self._api.Event()
        self._stream.wait_stream(self._api.current_stream())
        with self._api.stream(self._stream):
            host = {name: self._to_host(value) for name, value in values.items()}
            arrived.record(self._stream)

        def send_when_copied() -> None:
            arrived.synchronize()
            send(host)()

        return self._sender.submit(send_when_copied)

    def receive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Copy received values from host memory to the device. The current stream waits for the copy, this thread does
        not."""
        with self._api.stream(self._stream):
            on_device = {name: self._to_device(value) for name, value in values.items()}
        current = self._api.current_stream()
        current.wait_stream(self._stream)
        for value in on_device.values():
            if isinstance(value, torch.Tensor) and self._pinned:
                value.record_stream(current)
        return on_device

    def close(self) -> None:
        """Complete pending sends, and end the thread."""
        self._sender.shutdown()

    def _to_host(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=self._pinned)
        host.copy_(value, non_blocking=True)
        if self._pinned:
            value.record_stream(self._stream)  # its memory is not reused before the copy
        return host

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        pinned = value.pin_memory() if self._pinned else value
        return pinned.to(self._device, non_blocking=True, copy=True)
