# SPDX-License-Identifier: Apache-2.0
"""Whether tensors go on as they began: the schema that the first messages of an epoch have settled.

The invariant: within an epoch a name keeps its dtype, its rank and the width of its last dimension; only the numbers of
tokens and of sequences may change from step to step. A name that was not there before joins the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpptool.wire.link_errors import WireError


class TensorSchema:
    """What one receiver has settled on in an epoch."""

    def __init__(self) -> None:
        self._epoch = -1
        self._settled: dict[str, tuple[Any, int, int]] = {}

    def check(self, epoch: int, received: Mapping[str, Any]) -> None:
        """Take note of the tensors of one message; what is no tensor is passed over.

        Raises:
            WireError: a tensor is not as it was in this epoch before.
        """
        if epoch != self._epoch:
            self._epoch, self._settled = epoch, {}
        for name, value in received.items():
            shape = getattr(value, "shape", None)
            if shape is None:
                continue
            now = (value.dtype, len(shape), shape[-1] if len(shape) > 1 else 0)
            before = self._settled.setdefault(name, now)
            if now != before:
                raise WireError(
                    f"tensor {name!r} is {_shown(now)}, and was {_shown(before)} so far in epoch {epoch}.",
                    "The stage before runs another model, or another configuration of it.",
                )


def _shown(settled: tuple[Any, int, int]) -> str:
    dtype, rank, width = settled
    return f"{dtype} of rank {rank}" + (f" and width {width}" if rank > 1 else "")
