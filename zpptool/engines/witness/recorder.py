# SPDX-License-Identifier: Apache-2.0
"""Hashes what an engine taps, step by step, and writes it to the process's record."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from zpptool.engines.witness.capture import Capture
from zpptool.witness.options import CaptureTarget
from zpptool.witness.record import Layout, RecordWriter, Step
from zpptool.witness.row_hash import HASH_BYTES, hash_bytes, hash_rows, hash_tensor, sketch_rows
from zpptool.witness.taps import BEFORE_LAYERS, LAYER_OUT, LOGITS, Tap

SKETCH_EVERY = 16
"""Steps of a request with sketches: the first, and every so many after it."""
SMALL_ROWS = 64
"""Tensors of at most so many rows are copied and hashed together at the end of a step; larger ones at once."""


class StepRecorder:
    """Records one step at a time; used by one thread.

    Args:
        writer: of the process's record.
        target: the call whose tensors are saved; None for none.
        capture_file: where they are saved.

    Attributes:
        capture: of the step that is being recorded; None if its tensors are not saved.
        last_layer: the layer of the last tap in the step.
    """

    def __init__(
        self, writer: RecordWriter, target: CaptureTarget | None = None, capture_file: Path | None = None
    ) -> None:
        self._writer = writer
        self._target = target
        self._capture_file = capture_file
        self._open: Step | None = None
        self._taps: dict[Tap, bytes | None] = {}
        self._small: dict[Tap, Tensor] = {}
        self._last_rows: dict[Tap, Tensor] = {}
        self.capture: Capture | None = None
        self.last_layer = BEFORE_LAYERS

    @property
    def tokens(self) -> int:
        """The number of tokens of the step that is being recorded; 0 while there is none."""
        return self._open.tokens if self._open else 0

    def begin(self, request: int, number: int, start: int, tokens: int, epoch: int = 0) -> None:
        """Begin a step; see `zpptool.witness.record.Step`. A step that was not ended is forgotten."""
        self._taps, self._small, self._last_rows = {}, {}, {}
        self.last_layer = BEFORE_LAYERS
        self._open = Step(request, number, start, tokens, epoch, 0, b"")
        target = self._target
        is_captured = target is not None and (target.request, target.step) == (request, number)
        self.capture = Capture() if is_captured else None

    def captured_layer(self) -> int | None:
        """The layer whose tensors are saved in this step; None for none."""
        return self._target.layer if self._target is not None and self.capture is not None else None

    def take(self, layer: int, name: str, tensor: Tensor, *, by_row: bool = True) -> None:
        """Record what was computed at one tap. Nothing is recorded between steps.

        Args:
            layer, name: see `Tap`. A name that comes again within the step gets a number.
            tensor: [tokens, ...], or any tensor where `by_row` is false.
            by_row: whether there is one hash for each token.
        """
        if self._open is None:
            return
        self.last_layer = layer
        tap = Tap(layer, name, by_row)
        turn = 2
        while tap in self._taps:
            tap, turn = Tap(layer, f"{name} #{turn}", by_row), turn + 1
        if by_row and tensor.shape[0] <= SMALL_ROWS:
            self._taps[tap] = None
            self._small[tap] = tensor.detach().clone()
        else:
            hashed = hash_bytes(hash_rows(tensor)) if by_row else hash_tensor(tensor).to_bytes(HASH_BYTES, "little")
            self._taps[tap] = hashed
        if self._open.number % SKETCH_EVERY == 0 and name in (LAYER_OUT, LOGITS):
            self._last_rows[tap] = tensor.detach()[-1:].reshape(1, -1).clone()
        if self.captured_layer() == layer and self.capture is not None:
            self.capture.add(tap, tensor)

    def end(self, token: int = -1) -> None:
        """End the step and write it. `token` is what was chosen after it; -1 if nothing was chosen here."""
        step, self._open = self._open, None
        if step is None:
            return
        self._hash_small()
        sketched = {place: self._last_rows[tap] for place, tap in enumerate(self._taps) if tap in self._last_rows}
        layout = Layout(tuple(self._taps), tuple(sketched))
        written = msgspec.structs.replace(
            step,
            layout=self._writer.layout_number(layout),
            hashes=b"".join(hashed for hashed in self._taps.values() if hashed is not None),
            sketches=b"".join(sketch_rows(row).numpy().astype("<f4").tobytes() for row in sketched.values()),
            token=token,
        )
        self._writer.write(written)
        if self.capture is not None and self._capture_file is not None and self.capture.taps:
            self.capture.save(self._capture_file)
        self.capture = None

    def _hash_small(self) -> None:
        """Hash all small tensors of one shape and dtype in one go."""
        groups: dict[tuple[torch.dtype, torch.Size, torch.device], list[Tap]] = defaultdict(list)
        for tap, tensor in self._small.items():
            groups[tensor.dtype, tensor.shape, tensor.device].append(tap)
        for (_dtype, shape, _device), taps in groups.items():
            rows = torch.stack([self._small[tap] for tap in taps]).flatten(0, 1)
            content, size = hash_bytes(hash_rows(rows)), shape[0] * HASH_BYTES
            for place, tap in enumerate(taps):
                self._taps[tap] = content[place * size : (place + 1) * size]
