# SPDX-License-Identifier: Apache-2.0
"""The file of hashes that one process writes: a header, then one frame for each step that it computed.

A frame is its length, four bytes, little-endian, and a message of msgpack. The taps of a step are named once, in a
layout, so that a token of a model with 30 layers takes about 8 bytes for each of them. A process may be killed at any
time: a frame that is cut off at the end of a file is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import msgspec

from zpptool.errors import invalid_error
from zpptool.partition import LayerRange
from zpptool.regular_file import open_regular
from zpptool.witness.fingerprint import Fingerprint
from zpptool.witness.options import Level
from zpptool.witness.row_hash import HASH_BYTES, SKETCH_SIZE
from zpptool.witness.taps import Tap

MAGIC = b"zpptool-witness-1\n"
MAX_FRAME_BYTES = 256 << 20
REFERENCE = -1
"""The stage number of the unsplit model."""
_LENGTH = struct.Struct("<I")


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="header"):
    """What a record is of.

    Attributes:
        model: the digest of the model.
        stage: the stage's number, or `REFERENCE`.
        layers: the layers that it computes, half-open.
        level: how much was recorded.
        fingerprint: where and with what it was computed.
    """

    model: str
    stage: int
    layers: tuple[int, int]
    level: Level
    fingerprint: Fingerprint


class Weight(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="weight"):
    """A parameter or buffer as it lies in memory: its name in the model, dtype, shape, and BLAKE3 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blake3: str


class Layout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="layout"):
    """The taps of a step in the order in which they were computed. Layouts count from 0 in each file."""

    taps: tuple[Tap, ...]
    sketched: tuple[int, ...] = ()


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="step"):
    """One step of one request.

    Attributes:
        request: its name; see `zpptool.witness.taps.request_key`.
        number: the step's number in the request, from 0.
        start: the absolute position of its first token.
        tokens: how many it has.
        epoch: of the ring.
        layout: the number of the layout of its taps.
        hashes: of every tap, in order: one for each token, or one.
        sketches: float32, of the last row of each sketched tap.
        token: the token that was chosen after it; -1 if none was chosen here.
    """

    request: int
    number: int
    start: int
    tokens: int
    epoch: int
    layout: int
    hashes: bytes
    sketches: bytes = b""
    token: int = -1


Frame = Header | Weight | Layout | Step
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


class RecordWriter:
    """Writes a record. Every frame is in the file when the method returns; what kills the process later leaves it.

    Args:
        path: a file that does not exist yet, or is replaced.
        header: what it begins with.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._file = path.open("wb", buffering=0)
        self._file.write(MAGIC)
        self._layouts: dict[Layout, int] = {}
        self.write(header)

    def write(self, frame: Frame) -> None:
        """Append a frame."""
        content = _encoder.encode(frame)
        self._file.write(_LENGTH.pack(len(content)) + content)

    def layout_number(self, layout: Layout) -> int:
        """The number of a layout, which is written when it is first used."""
        if layout not in self._layouts:
            self._layouts[layout] = len(self._layouts)
            self.write(layout)
        return self._layouts[layout]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Computed:
    """One step of one request as a record holds it.

    Attributes:
        step: as it was written.
        layout: of its taps.
    """

    step: Step
    layout: Layout

    def hashes(self) -> dict[Tap, memoryview]:
        """The hashes of each tap, 8 bytes each, in the order in which they were computed."""
        sizes = [HASH_BYTES * (self.step.tokens if tap.by_row else 1) for tap in self.layout.taps]
        ends = list(accumulate(sizes))
        content = memoryview(self.step.hashes)
        return {tap: content[end - size : end] for tap, size, end in zip(self.layout.taps, sizes, ends, strict=True)}

    def sketches(self) -> dict[Tap, tuple[float, ...]]:
        """The sketch of the last row of each tap that has one."""
        numbers = struct.unpack(f"<{len(self.step.sketches) // 4}f", self.step.sketches)
        return {
            self.layout.taps[place]: numbers[at : at + SKETCH_SIZE]
            for place, at in zip(self.layout.sketched, range(0, len(numbers), SKETCH_SIZE), strict=False)
        }


@dataclass
class Record:
    """What one process has recorded.

    Attributes:
        header: what it is of.
        weights: the parameters in memory, by name.
        steps: in the order in which they were computed.
    """

    header: Header
    weights: dict[str, Weight] = field(default_factory=dict)
    steps: list[Computed] = field(default_factory=list)

    @property
    def layers(self) -> LayerRange:
        """The layers that the process computes."""
        return LayerRange(*self.header.layers)


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ZppError: (INVALID) the file is no record, or its content is not what this release writes.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise invalid_error(f"{path} is no witness record", "Name a file that test-pipeline or --witness wrote.")
        frames = _frames(file, path)
        header = next(frames, None)
        if not isinstance(header, Header):
            raise invalid_error(f"{path} is a witness record without a header")
        record, layouts = Record(header), list[Layout]()
        for frame in frames:
            if isinstance(frame, Layout):
                layouts.append(frame)
            elif isinstance(frame, Weight):
                record.weights[frame.name] = frame
            elif isinstance(frame, Step):
                record.steps.append(_checked(frame, layouts, path))
    return record


def _frames(file: BinaryIO, path: Path) -> Iterator[Frame]:
    while len(prefix := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(prefix)
        if length > MAX_FRAME_BYTES:
            raise invalid_error(f"{path} is damaged: a frame of {length} bytes is more than the limit")
        content = file.read(length)
        if len(content) < length:
            return
        try:
            yield _decoder.decode(content)
        except msgspec.DecodeError as cause:
            raise invalid_error(f"{path} is damaged, or of another release of zpptool: {cause}") from cause


def _checked(step: Step, layouts: list[Layout], path: Path) -> Computed:
    if not 0 <= step.layout < len(layouts):
        raise invalid_error(f"{path} is damaged: a step has the layout {step.layout} of {len(layouts)}")
    layout = layouts[step.layout]
    rows = sum(step.tokens if tap.by_row else 1 for tap in layout.taps)
    if step.tokens < 0 or len(step.hashes) != rows * HASH_BYTES or len(step.sketches) % (4 * SKETCH_SIZE):
        raise invalid_error(f"{path} is damaged: a step has {len(step.hashes)} bytes of hashes for {rows} of them")
    return Computed(step, layout)
