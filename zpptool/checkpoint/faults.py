# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a split, named by kind, stage and tensor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SplitFaultCode(StrEnum):
    """The kinds of fault that a split can have; scripts rely on the values."""

    MANIFEST = "manifest"
    """A stage's manifest cannot be read, or was changed."""
    STAGES = "stages"
    """A stage is missing, twice there, or of another split than the others."""
    RANGES = "ranges"
    """The stages' layers do not cover the model once."""
    MISSING = "missing"
    """A tensor is not where it should be."""
    EXTRA = "extra"
    """A tensor is where it should not be."""
    TENSOR = "tensor"
    """A tensor's dtype, shape or length is not what it should be."""
    BYTES = "bytes"
    """A tensor's bytes are not what they should be."""
    FILE = "file"
    """A file is missing, extra, changed, or cannot be read."""
    SOURCE = "source"
    """The split is of another model than the given one."""


@dataclass(frozen=True)
class SplitFault:
    """One thing wrong with a split.

    Attributes:
        code: the kind of fault.
        message: one sentence that names the stage, the file or the tensor.
        stage: the stage at fault, or None where it is the split as a whole.
        tensor: the tensor at fault, or None.
    """

    code: SplitFaultCode
    message: str
    stage: int | None = None
    tensor: str | None = None
