# SPDX-License-Identifier: Apache-2.0
"""Lossless compression of one chunk: its bytes are sorted into planes, and each plane is compressed by zstd.

The invariant: `expand` writes exactly the bytes that `shrink` was given, or raises `WireError`; it allocates no more
memory than the chunk has, however much a hostile frame claims to hold. The first bytes of all elements make one plane,
the second bytes the next. In a bf16 activation the plane of exponents shrinks to 2/5 and that of mantissas not at all,
so each plane is compressed separately (twice as fast as both together), or stored as it is where it would not shrink.
Numpy, which comes with torch, is imported when elements are wider than a byte.
"""

from __future__ import annotations

import struct
import threading

import zstandard

from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Buffer

LEVEL = 1
"""Level 3 is three times slower and gains nothing; negative levels are as slow and gain half as much."""
WIDTHS = (1, 2, 4, 8, 16)
_STORED = struct.Struct("<I")
_WORTH = 15 / 16
"""A chunk that does not shrink below this fraction is sent uncompressed: it would not be worth decompressing."""
_thread = threading.local()


def shrink(data: Buffer, width: int) -> bytes | None:
    """The chunk as planes, each after its length (u32); None when that saves next to nothing.

    Args:
        data: whole elements.
        width: bytes of an element, one of `WIDTHS`.
    """
    compressor = _tools()[0]
    pieces: list[Buffer] = []
    total = 0
    for plane in _planes(data, width):
        packed = compressor.compress(plane)
        stored = packed if len(packed) < memoryview(plane).nbytes else plane
        pieces += (_STORED.pack(memoryview(stored).nbytes), stored)
        total += _STORED.size + memoryview(stored).nbytes
    return b"".join(pieces) if total < memoryview(data).nbytes * _WORTH else None


def expand(packed: Buffer, width: int, into: memoryview) -> None:
    """Decompress a chunk.

    Args:
        packed: what `shrink` returned.
        width: as it was compressed with.
        into: the memory for the chunk; its length is the chunk's.

    Raises:
        WireError: it is not a chunk of that width and length.
    """
    if width not in WIDTHS or into.nbytes % width:
        raise WireError(f"a chunk of {into.nbytes} bytes in elements of {width} bytes.")
    source = memoryview(packed)
    length = into.nbytes // width
    planes: list[Buffer] = []
    start = 0
    for _ in range(width):
        if source.nbytes - start < _STORED.size:
            raise WireError("a compressed chunk ends too early.")
        (stored,) = _STORED.unpack_from(source, start)
        start += _STORED.size
        if stored > source.nbytes - start:
            raise WireError("a compressed chunk ends too early.")
        planes.append(_plane(source[start : start + stored], length))
        start += stored
    if start != source.nbytes:
        raise WireError(f"{source.nbytes - start} bytes follow a compressed chunk.")
    if width == 1:
        into[:] = planes[0]
        return
    import numpy

    elements = numpy.frombuffer(into, numpy.uint8).reshape(length, width)
    for index, plane in enumerate(planes):
        elements[:, index] = numpy.frombuffer(plane, numpy.uint8)


def _planes(data: Buffer, width: int) -> list[Buffer]:
    if width == 1:
        return [data]
    import numpy

    return [plane.data for plane in numpy.ascontiguousarray(numpy.frombuffer(data, numpy.uint8).reshape(-1, width).T)]


def _plane(stored: memoryview, length: int) -> Buffer:
    if stored.nbytes == length:
        return stored
    try:
        # The decompressor allocates as much memory as the frame declares: check that first.
        if zstandard.get_frame_parameters(stored).content_size != length:
            raise WireError(f"a compressed plane does not hold the expected {length} bytes.")
        plane: bytes = _tools()[1].decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"a compressed chunk cannot be read: {error}.") from error
    if len(plane) != length:
        raise WireError(f"a compressed plane does not hold the expected {length} bytes.")
    return plane


def _tools() -> tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor]:
    """This thread's compressor and decompressor; two threads may not share them."""
    if not hasattr(_thread, "tools"):
        _thread.tools = (zstandard.ZstdCompressor(level=LEVEL), zstandard.ZstdDecompressor())
    tools: tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor] = _thread.tools
    return tools
