# SPDX-License-Identifier: Apache-2.0
"""Copies what a stage receives from host memory to its device while the device computes.

Two slots take turns; each has host memory and a buffer on the device. The order of one receive:

1. the slot's host memory is free: its last copy is done (this thread waits for that);
2. what was received is copied into it (this thread);
3. what the device computed from the slot's buffer is done (current stream);
4. the host memory is copied into the buffer (side stream, after 2 and 3);
5. it is computed with (current stream, after 4).

Only the device waits for 3 and 4. With the other slot, 4 runs while the device computes the step before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from zpptool.engines.staging.device import Device, Event
from zpptool.engines.staging.layout import Shapes, grown, lay_out, shapes_of, with_rows


class Received(NamedTuple):
    """What was received, on the device.

    Attributes:
        values: exactly what was sent.
        padded: the same values, whose tensors are views of the whole buffers: with as many rows as any step may have,
            zeros after those that were sent. A stage that pads its steps reads as many of them as it wants.
    """

    values: dict[str, Any]
    padded: dict[str, Any]


class _Slot:
    """Memory for one message.

    Attributes:
        copied: recorded after the last copy out of the host memory.
        read: recorded after everything that reads the device's buffer; None for a buffer without readers.
        shapes: of the buffer's tensors.
        rows: how many rows of each tensor are not zero.
    """

    def __init__(self) -> None:
        self.copied: Event | None = None
        self.read: Event | None = None
        self.shapes: Shapes = ()
        self.rows: dict[str, int] = {}
        self._host: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None

    def host_views(self, device: Device, shapes: Shapes) -> dict[str, torch.Tensor]:
        """Host memory for these tensors."""
        layout = lay_out(shapes)
        if self._host is None or len(self._host) < layout.nbytes:
            self._host = device.host_memory(grown(layout.nbytes))
        return layout.views(self._host)

    def buffer_views(self, device: Device, shapes: Shapes) -> dict[str, torch.Tensor]:
        """The device's memory for these tensors. Where there are others than before, nothing in it counts as zero."""
        layout = lay_out(shapes)
        if self._buffer is None or len(self._buffer) < layout.nbytes:
            self._buffer = device.device_memory(layout.nbytes)
            self.read = None
        if shapes != self.shapes:
            self.shapes = shapes
            self.rows = {name: shape[0] for name, _, shape in shapes if shape}
        return layout.views(self._buffer)


class StagedReceiver:
    """Receives into two slots in turn. What reads the values of one receive has to be queued before the next one.

    Args:
        device: where it goes.
        rows: the largest number of rows of a step; None where every message has its own shapes and nothing is padded.
    """

    def __init__(self, device: Device, rows: int | None) -> None:
        self._device = device
        self._rows = rows
        self._stream = device.new_stream()
        self._slots = (_Slot(), _Slot())

    def receive(self, values: Mapping[str, Any]) -> Received:
        """Queue the copy of values from host memory to the device. The current stream waits for it, and this thread
        does not."""
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        shapes = shapes_of(tensors)
        slot, other = self._slots
        if slot.copied is not None:
            slot.copied.synchronize()
        host = slot.host_views(self._device, shapes)
        for name, tensor in tensors.items():
            self._device.fill(host[name], tensor)
        padded = slot.buffer_views(self._device, shapes if self._rows is None else with_rows(shapes, self._rows))
        exact = {name: padded[name][: shape[0]] if shape else padded[name] for name, _, shape in shapes}
        current, now = self._device.current_stream(), self._device.new_event()
        now.record(current)
        self._stream.wait_event(slot.read or now)
        copied = self._device.new_event()
        with self._device.on(self._stream):
            for name, tensor in exact.items():
                self._device.copy(tensor, host[name])
                self._zero_after(slot, name, tensor, padded[name])
        copied.record(self._stream)
        current.wait_event(copied)
        slot.copied = copied
        other.read = now  # what reads the other slot was queued before now
        self._slots = (other, slot)
        return Received({**values, **exact}, {**values, **padded})

    def _zero_after(self, slot: _Slot, name: str, exact: torch.Tensor, padded: torch.Tensor) -> None:
        """Set the rows after those that were received to zero, as far as they are not."""
        if not exact.dim():
            return
        rows, slot.rows[name] = slot.rows[name], len(exact)
        if len(exact) < rows:
            self._device.zero(padded[len(exact) : rows])
