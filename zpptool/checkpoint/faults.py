# SPDX-License-Identifier: Apache-2.0
"""Faults of a split: kind, stage and tensor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SplitFaultCode(StrEnum):
    """Kinds of fault in a split. Scripts rely on the values."""

    MANIFEST = "manifest"
    """A stage's manifest cannot be read, or was changed after the split."""
    STAGES = "stages"
    """A stage is missing, present twice, or from another split than the others."""
    RANGES = "ranges"
    """The stages' layer ranges do not cover every layer exactly once."""
    MISSING = "missing"
    """A tensor is missing from a stage that needs it."""
    EXTRA = "extra"
    """A tensor is in a stage that does not need it."""
    TENSOR = "tensor"
    """A tensor has a wrong dtype, shape or length."""
    BYTES = "bytes"
    """A tensor's bytes differ from the recorded digest or from the source."""
    FILE = "file"
    """A file is missing, unexpected, changed, or cannot be read."""
    SOURCE = "source"
    """The split was made from another model than the given one."""


@dataclass(frozen=True)
class SplitFault:
    """One fault of a split.

    Attributes:
        code: the kind of fault.
        message: one sentence that names the stage, the file or the tensor.
        stage: the stage at fault, or None if the split as a whole is.
        tensor: the tensor at fault, or None.
    """

    code: SplitFaultCode
    message: str
    stage: int | None = None
    tensor: str | None = None
