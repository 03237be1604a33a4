# SPDX-License-Identifier: Apache-2.0
"""Whether tensors keep the schema that the first messages of an epoch have set.

The invariant: within an epoch a name keeps its dtype, its rank and the width of its last dimension; only the numbers of
tokens and of sequences may change from step to step. A new name is added to the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpptool.wire.link_errors import WireError


class TensorSchema:
    """The schema of one receiver in the current epoch."""

    def __init__(self) -> None:
        self._epoch = -1
        self._schema: dict[str, tuple[Any, int, int]] = {}

    def check(self, epoch: int, received: Mapping[str, Any]) -> None:
        """Check the tensors of one message, and add new names; values that are no tensors are ignored.

        Raises:
            WireError: a tensor differs from those of the same name in this epoch.
        """
        if epoch != self._epoch:
            self._epoch, self._schema = epoch, {}
        for name, value in received.items():
            shape = getattr(value, "shape", None)
            if shape is None:
                continue
            now = (value.dtype, len(shape), shape[-1] if len(shape) > 1 else 0)
            before = self._schema.setdefault(name, now)
            if now != before:
                raise WireError(
                    f"tensor {name!r} is {_shown(now)}, and was {_shown(before)} so far in epoch {epoch}.",
                    "The stage before runs another model, or another configuration of it.",
                )


def _shown(entry: tuple[Any, int, int]) -> str:
    dtype, rank, width = entry
    return f"{dtype} of rank {rank}" + (f" and width {width}" if rank > 1 else "")
