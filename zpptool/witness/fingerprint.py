# SPDX-License-Identifier: Apache-2.0
"""What the bits of a computation depend on beside the model and the request."""

from __future__ import annotations

import msgspec

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "float64": 1e-9}
"""How far sketches may be apart where bits cannot be compared, relative to their length, by the dtype of the model."""


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and with what a model was computed. Only under equal fingerprints can bits be expected to be equal.

    Attributes:
        engine: its name and release.
        torch: the release.
        device: `cpu`, or the name of the accelerator.
        processor: the model of the CPU: libraries choose block sizes by its caches.
        instruction_set: the widest that torch uses there.
        threads: how many compute one operation: sums depend on how they are divided.
        dtype: of the weights and activations.
    """

    engine: str
    torch: str
    device: str
    processor: str
    instruction_set: str
    threads: int
    dtype: str

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the attributes in which two fingerprints differ."""
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]

    @property
    def tolerance(self) -> float:
        """See `TOLERANCES`; for another dtype the widest of them."""
        return TOLERANCES.get(self.dtype, max(TOLERANCES.values()))
