# SPDX-License-Identifier: Apache-2.0
"""Has a CPU build of torch import the Python parts of a torchvision that was built for CUDA.

For tests only, on PYTHONPATH of processes that need torchvision's image transforms, which are Python. torchvision
registers functions for its own operators when it is imported, and the library that defines those does not load here. So
the operators are defined before, without any implementation: calling one fails.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from typing import Any

OPERATORS = (
    "_cuda_version", "_deform_conv2d_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward",
    "_roi_align_backward", "_roi_pool_backward", "box_iou_rotated", "deform_conv2d", "nms", "ps_roi_align",
    "ps_roi_pool", "qnms", "qroi_align", "roi_align", "roi_pool",
)  # fmt: skip
"""All that the files of torchvision 0.28 name."""
_kept: list[Any] = []
"""A library of operators exists as long as its object."""


class OperatorsFirst(importlib.abc.MetaPathFinder):
    """Defines the operators when torchvision is about to be imported, and leaves finding it to the other finders."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not _kept:
            import torch

            _kept.append(torch.library.Library("torchvision", "DEF"))
            for name in OPERATORS:
                _kept[0].define(f"{name}() -> ()")
        return None


sys.meta_path.insert(0, OperatorsFirst())
