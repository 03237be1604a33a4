# SPDX-License-Identifier: Apache-2.0
"""Where tensors are in one block of bytes: pure, for host memory and for a device's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

ALIGNMENT = 256
"""Of each tensor, in bytes: that of a device's own allocations, which kernels expect of their operands."""

Shapes = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor."""


class Layout(NamedTuple):
    """Tensors, back to back in one block.

    Attributes:
        shapes: of the tensors.
        offsets: where each begins, in bytes.
        nbytes: of the block.
    """

    shapes: Shapes
    offsets: tuple[int, ...]
    nbytes: int

    def views(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors in a block of at least `nbytes` bytes."""
        return {
            name: block[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for (name, dtype, shape), offset in zip(self.shapes, self.offsets, strict=True)
        }


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """The shapes of these tensors."""
    return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())


def with_rows(shapes: Shapes, rows: int) -> Shapes:
    """The same tensors with at least so many rows; one without dimensions stays as it is."""
    return tuple((name, dtype, (max(rows, shape[0]), *shape[1:]) if shape else shape) for name, dtype, shape in shapes)


def lay_out(shapes: Shapes) -> Layout:
    """The layout of these tensors in their order."""
    offsets: list[int] = []
    end = 0
    for _, dtype, shape in shapes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + math.prod(shape) * dtype.itemsize
    return Layout(shapes, tuple(offsets), end)


def grown(nbytes: int) -> int:
    """The size of a block for so many bytes: the next power of two, so that it is seldom replaced by a larger one."""
    return 1 << max(nbytes - 1, 0).bit_length()
