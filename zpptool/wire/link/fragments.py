# SPDX-License-Identifier: Apache-2.0
"""A message whose payload does not travel with it: it announces its frames, and they follow in chunks or lie elsewhere.

The invariant: a `Parcel` within the limits fixes how many bytes each frame has before memory is taken for it, and
`Assembly` accepts exactly the chunks that fill its frames, in order, each once and each of this very message. One chunk
is one ZeroMQ message, so that a receiver puts the first away while the last is still being sent, and neither side holds
the payload twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from zpptool.wire.compression.byte_planes import WIDTHS, expand
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import CHUNK_BYTES, PREAMBLE_BYTES, Buffer, Limits, Message

# way, bytes, ticket
_ENTRY = struct.Struct("<QQQ")
ENTRY_BYTES = _ENTRY.size

# magic, codec, width, frame, session, bytes before the codec, number, sequence of its message; little-endian, 28 bytes
_CHUNK = struct.Struct("<4sBBHIIIQ")
CHUNK_MAGIC = b"ZPPC"
PLAIN, PLANES = 0, 1
"""Codecs of a chunk: as it is, or as `zpptool.wire.compression.byte_planes` shrinks it."""


class Entry(NamedTuple):
    """How one frame comes: 0 in chunks, else by the way of that number, which knows it by the ticket."""

    way: int
    nbytes: int
    ticket: int = 0


class Parcel(NamedTuple):
    """A message that was announced: all but its frames, and how they come."""

    message: Message
    entries: tuple[Entry, ...]


class Chunk(NamedTuple):
    """What is told of one chunk."""

    codec: int
    width: int
    frame: int
    session: int
    nbytes: int
    number: int
    sequence: int


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """The table that follows the header of a parcel."""
    return b"".join([_ENTRY.pack(*entry) for entry in entries])


def decode_entries(table: memoryview, count: int) -> tuple[Entry, ...]:
    """The table's entries.

    Raises:
        WireError: it has not `count` of them.
    """
    if table.nbytes != count * ENTRY_BYTES:
        raise WireError(f"a table of {table.nbytes} bytes came for {count} frames.")
    return tuple([Entry(*_ENTRY.unpack_from(table, index * ENTRY_BYTES)) for index in range(count)])


def encode_chunk(chunk: Chunk) -> bytes:
    """The first of a chunk's two parts."""
    return _CHUNK.pack(CHUNK_MAGIC, *chunk)


def is_chunk(parts: Sequence[Buffer]) -> bool:
    """Whether what came is a chunk, not a message."""
    first = memoryview(parts[0])
    return first.nbytes == _CHUNK.size and first[: len(CHUNK_MAGIC)] == CHUNK_MAGIC


def cut(nbytes: int) -> Iterator[slice]:
    """Where the chunks of a frame lie in it."""
    for start in range(0, nbytes, CHUNK_BYTES):
        yield slice(start, min(start + CHUNK_BYTES, nbytes))


def largest_part(limits: Limits) -> int:
    """The longest ZeroMQ frame that a message within these limits is sent in; bytes."""
    return max(CHUNK_BYTES, PREAMBLE_BYTES + limits.max_header_bytes + ENTRY_BYTES * limits.max_frames)


def most_chunks(limits: Limits, messages: int) -> int:
    """How many chunks so many messages within these limits can have, when one of them is as long as can be."""
    return limits.max_message_bytes // CHUNK_BYTES + messages * limits.max_frames


class Assembly:
    """A parcel that is being filled.

    Args:
        parcel: what was announced; its sizes are within the limits.
        frames: its memory: None for each frame that comes in chunks, the frame itself where it came by another way.
        take: gives the memory for a frame that comes in chunks.
    """

    def __init__(self, parcel: Parcel, frames: Sequence[memoryview | None], take: Callable[[int], memoryview]) -> None:
        self._parcel = parcel
        self._frames: list[memoryview] = []
        self._due: list[tuple[int, slice]] = []
        for index, (entry, frame) in enumerate(zip(parcel.entries, frames, strict=True)):
            if frame is None:
                self._due += [(index, part) for part in cut(entry.nbytes)]
            self._frames.append(take(entry.nbytes) if frame is None else frame)
        self._number = 0

    @property
    def whole(self) -> Message | None:
        """The message, when nothing of it is missing any more."""
        if self._number < len(self._due):
            return None
        head = self._parcel.message
        return Message(
            head.kind, head.source, head.epoch, head.sequence, head.session, head.header, tuple(self._frames)
        )

    def add(self, parts: Sequence[Buffer]) -> None:
        """Take in the chunk that is due.

        Raises:
            WireError: it is another one, or not whole. Nothing can be added after that.
        """
        if len(parts) != 2:
            raise WireError(f"a chunk of {len(parts)} parts.")
        chunk = Chunk(*_CHUNK.unpack(parts[0])[1:])
        head = self._parcel.message
        if (chunk.session, chunk.sequence) != (head.session, head.sequence) or chunk.number != self._number:
            raise WireError(
                f"chunk {chunk.number} of message {chunk.sequence} came, due is {self._number} of {head.sequence}."
            )
        frame, part = self._due[self._number]
        nbytes = part.stop - part.start
        if (chunk.frame, chunk.nbytes) != (frame, nbytes):
            raise WireError(f"a chunk of {chunk.nbytes} bytes of frame {chunk.frame}, due are {nbytes} of {frame}.")
        into, data = self._frames[frame][part], memoryview(parts[1])
        if chunk.codec == PLANES:
            expand(data, chunk.width, into)
        elif chunk.codec != PLAIN or chunk.width not in WIDTHS or data.nbytes != nbytes:
            raise WireError(f"a chunk of {data.nbytes} bytes by codec {chunk.codec}, {nbytes} are due.")
        else:
            into[:] = data
        self._number += 1
