# SPDX-License-Identifier: Apache-2.0
"""What a process records of its computation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

SUFFIX = ".zppw"
"""The ending of a record's file name."""


class Level(StrEnum):
    """How much is recorded. Each level includes those before it."""

    OFF = "off"
    BOUNDARY = "boundary"
    """What stages receive and send, the logits, and the tokens."""
    LAYERS = "layers"
    """What goes into every decoder layer and comes out of it."""
    OPS = "ops"
    """What every module within a layer returns, and what attention gets and returns."""

    @property
    def has_layers(self) -> bool:
        """Whether the inputs and outputs of layers are recorded."""
        return self in (Level.LAYERS, Level.OPS)


class CaptureTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of one layer whose tensors are saved as they are, beside the hashes.

    Attributes:
        request: the request, as `request_key` names it.
        step: the request's step, from 0.
        layer: the decoder layer; -1 for what precedes the layers, their number for what follows them.
    """

    request: int
    step: int
    layer: int


class WitnessOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is recorded, and where.

    Attributes:
        level: how much.
        directory: of the record's file, which exists; empty if nothing is recorded.
        capture: a call whose tensors are saved; None for none.
    """

    level: Level = Level.OFF
    directory: str = ""
    capture: CaptureTarget | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self.level is not Level.OFF

    def record_file(self, process: str) -> Path:
        """The file of a process's record.

        Args:
            process: `reference`, or `stage-1` for stage 1.
        """
        return Path(self.directory) / f"{process}{SUFFIX}"

    def capture_file(self, process: str) -> Path:
        """The file of the tensors that a process saves for `capture`."""
        return Path(self.directory) / f"{process}.capture.safetensors"
