# SPDX-License-Identifier: Apache-2.0
"""Copies a stage's outputs to host memory while the device computes, and sends them from a thread of their own.

The order of one send, in which no step is left out:

1. the outputs are computed (current stream);
2. they are copied into a host buffer that is free (side stream, after 1);
3. they may be overwritten (current stream, after 2, once `Arrival.wait` was called);
4. the buffer is sent (sending thread, after 2);
5. the buffer is free (after 4, when the link has released it).

The main thread waits for none of it. It needs a free buffer, and the number of buffers bounds how much is outstanding.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from zpptool.engines.staging.device import Device, Event
from zpptool.engines.staging.layout import grown, lay_out, shapes_of

Deliver = Callable[[dict[str, Any]], Callable[[], None]]
"""Sends values, whose tensors are in host memory; returns a function that waits until that memory may be written
again."""


class HostBuffer:
    """Host memory of one send. It is as large as the largest send so far, and used by one send at a time.

    Args:
        device: copies into it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._block: torch.Tensor | None = None

    def views(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of the same dtypes and shapes in this memory."""
        layout = lay_out(shapes_of(tensors))
        if self._block is None or len(self._block) < layout.nbytes:
            self._block = self._device.host_memory(grown(layout.nbytes))
        return layout.views(self._block)

    def abandon(self) -> None:
        """Use other memory from now on: this one may still be read."""
        self._block = None


class Arrival:
    """The copy of one send to host memory.

    Args:
        device: whose outputs are copied.
        arrived: recorded after the copy.
    """

    def __init__(self, device: Device, arrived: Event) -> None:
        self._device = device
        self._arrived = arrived

    def wait(self) -> None:
        """Have the current stream wait for the copy: what it computes from now on may overwrite the outputs. This
        thread does not wait."""
        self._device.current_stream().wait_event(self._arrived)


class StagedSender:
    """Sends in the order in which it was asked to.

    Args:
        device: where the outputs are.
        in_flight: how many sends may be outstanding.
    """

    def __init__(self, device: Device, in_flight: int) -> None:
        self._device = device
        self._stream = device.new_stream()
        self._free: queue.SimpleQueue[HostBuffer] = queue.SimpleQueue()
        for _ in range(in_flight):
            self._free.put(HostBuffer(device))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage-send")  # a single thread keeps the order

    def reserve(self, timeout_s: float) -> HostBuffer | None:
        """A free buffer for `send`; None if none becomes free in so many seconds."""
        try:
            return self._free.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def send(
        self, buffer: HostBuffer, values: Mapping[str, Any], deliver: Deliver, failed: Callable[[Exception], None]
    ) -> Arrival:
        """Queue the copy of values that are being computed, and have them sent when they have arrived.

        Args:
            buffer: from `reserve`.
            values: tensors on the device, and plain values.
            deliver: called on the sending thread.
            failed: called on the sending thread with what `deliver`, or the wait that it returned, raised.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        plain = {name: value for name, value in values.items() if name not in tensors}
        host = buffer.views(tensors)
        arrived = self._queue_copies(tensors, host)

        def deliver_when_arrived(outputs: dict[str, torch.Tensor]) -> None:
            try:
                arrived.synchronize()
                outputs.clear()  # referenced until here, so that their memory is not reused before they are copied
                deliver({**plain, **host})()
            except Exception as fault:
                buffer.abandon()
                failed(fault)
            finally:
                self._free.put(buffer)

        self._thread.submit(deliver_when_arrived, tensors)
        return Arrival(self._device, arrived)

    def _queue_copies(self, tensors: Mapping[str, torch.Tensor], host: Mapping[str, torch.Tensor]) -> Event:
        """Queue the copies of tensors that are being computed. The event that is returned is recorded after them."""
        computed, arrived = self._device.new_event(), self._device.new_event()
        computed.record(self._device.current_stream())
        self._stream.wait_event(computed)
        with self._device.on(self._stream):
            for name, tensor in tensors.items():
                self._device.copy(host[name], tensor)
        arrived.record(self._stream)
        return arrived

    def close(self) -> None:
        """Complete pending sends, and end the thread."""
        self._thread.shutdown()
