# SPDX-License-Identifier: Apache-2.0
"""Buffers of the largest size for what another rank of the same stage has received."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zpptool.engines.staging.device import device_apart
from zpptool.engines.staging.layout import lay_out, shapes_of, with_rows


class PaddedRows:
    """Copies tensors into buffers with more rows, on the device's current stream. What reads them has to be queued
    before the next ones are copied.

    Args:
        device: where the tensors are. On a CPU nothing is padded, and they are returned as they are.
        rows: how many rows the buffers have; None for no padding.
    """

    def __init__(self, device: torch.device | None, rows: int | None) -> None:
        self._rows = rows if device_apart(device) is not None else None
        self._device = device
        self._block: torch.Tensor | None = None

    @torch.inference_mode()
    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, whose tensors are the buffers, with zeros after the rows of `values`."""
        if self._rows is None:
            return dict(values)
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        layout = lay_out(with_rows(shapes_of(tensors), self._rows))
        if self._block is None or len(self._block) < layout.nbytes:
            self._block = torch.zeros(layout.nbytes, dtype=torch.uint8, device=self._device)
        padded = layout.views(self._block)
        for name, tensor in tensors.items():
            if tensor.dim():
                padded[name][len(tensor) :].zero_()
                padded[name][: len(tensor)].copy_(tensor)
            else:
                padded[name].copy_(tensor)
        return {**values, **padded}
