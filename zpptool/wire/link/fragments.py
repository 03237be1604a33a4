# SPDX-License-Identifier: Apache-2.0
"""A message that is sent in fragments: an announcement of its frames, which follow in chunks or use a side channel.

The invariant: an `Announcement` within the limits fixes how many bytes each frame has before memory is allocated for
it, and `Assembly` accepts exactly the chunks that fill its frames, in order, each once and each of this very message.
One chunk is one ZeroMQ message, so that a receiver stores the first while the last is still being sent, and neither
side holds the payload twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from zpptool.wire.compression.byte_planes import WIDTHS, expand
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import CHUNK_BYTES, PREAMBLE_BYTES, Buffer, Limits, Message
from zpptool.wire.sealed.transfer import Transfer

# channel, bytes, ticket
_ENTRY = struct.Struct("<QQQ")
ENTRY_BYTES = _ENTRY.size

# magic, codec, width, frame, session, bytes before the codec, number, sequence of its message; little-endian, 28 bytes
_CHUNK = struct.Struct("<4sBBHIIIQ")
CHUNK_MAGIC = b"ZPPC"
PLAIN, PLANES = 0, 1
"""Codecs of a chunk: uncompressed, or compressed by `zpptool.wire.compression.byte_planes`."""


class Entry(NamedTuple):
    """How one frame is sent: in chunks (channel 0), or by the side channel of that number, which has its ticket."""

    channel: int
    nbytes: int
    ticket: int = 0


class Announcement(NamedTuple):
    """A message without its frames, and how these are sent."""

    message: Message
    entries: tuple[Entry, ...]


class Chunk(NamedTuple):
    """The fields of a chunk's head."""

    codec: int
    width: int
    frame: int
    session: int
    nbytes: int
    number: int
    sequence: int


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """The table that follows the header of an announcement."""
    return b"".join([_ENTRY.pack(*entry) for entry in entries])


def decode_entries(table: memoryview, count: int) -> tuple[Entry, ...]:
    """The table's entries.

    Raises:
        WireError: it does not have `count` of them.
    """
    if table.nbytes != count * ENTRY_BYTES:
        raise WireError(f"a table of {table.nbytes} bytes came for {count} frames.")
    return tuple([Entry(*_ENTRY.unpack_from(table, index * ENTRY_BYTES)) for index in range(count)])


def encode_chunk(chunk: Chunk) -> bytes:
    """The first of a chunk's two parts."""
    return _CHUNK.pack(CHUNK_MAGIC, *chunk)


def is_chunk(parts: Sequence[Buffer]) -> bool:
    """Whether these parts are a chunk, not a message."""
    first = memoryview(parts[0])
    return first.nbytes == _CHUNK.size and first[: len(CHUNK_MAGIC)] == CHUNK_MAGIC


def cut(nbytes: int) -> Iterator[slice]:
    """The slices of a frame that its chunks carry."""
    for start in range(0, nbytes, CHUNK_BYTES):
        yield slice(start, min(start + CHUNK_BYTES, nbytes))


def largest_part(limits: Limits) -> int:
    """The longest ZeroMQ frame that a message within these limits is sent in; bytes."""
    return max(CHUNK_BYTES, PREAMBLE_BYTES + limits.max_header_bytes + ENTRY_BYTES * limits.max_frames)


def most_chunks(limits: Limits, messages: int) -> int:
    """How many chunks so many messages within these limits can have, when one of them is as long as can be."""
    return limits.max_message_bytes // CHUNK_BYTES + messages * limits.max_frames


class Assembly:
    """An announced message that is being assembled.

    Args:
        announcement: of the message; its sizes are within the limits.
        frames: None for each frame that comes in chunks, the frame itself where a side channel has delivered it.
        take: allocates the memory for a frame that comes in chunks.
        transfers: of the frames that arrive by the sealed channel, beside the chunks.
    """

    def __init__(
        self,
        announcement: Announcement,
        frames: Sequence[memoryview | None],
        take: Callable[[int], memoryview],
        transfers: Sequence[Transfer] = (),
    ) -> None:
        self._announcement = announcement
        self._transfers = transfers
        self._frames: list[memoryview] = []
        self._due: list[tuple[int, slice]] = []
        for index, (entry, frame) in enumerate(zip(announcement.entries, frames, strict=True)):
            if frame is None:
                self._due += [(index, part) for part in cut(entry.nbytes)]
            self._frames.append(take(entry.nbytes) if frame is None else frame)
        self._number = 0

    @property
    def has_all_chunks(self) -> bool:
        """Whether every chunk has been added."""
        return self._number == len(self._due)

    @property
    def message(self) -> Message | None:
        """The message, when it is complete."""
        if self._number < len(self._due) or not all(transfer.complete for transfer in self._transfers):
            return None
        head = self._announcement.message
        return Message(
            head.kind, head.source, head.epoch, head.sequence, head.session, head.header, tuple(self._frames)
        )

    def add(self, parts: Sequence[Buffer]) -> None:
        """Add the chunk that is due.

        Raises:
            WireError: it is another chunk, or malformed. Nothing can be added after that.
        """
        if len(parts) != 2:
            raise WireError(f"a chunk of {len(parts)} parts.")
        chunk = Chunk(*_CHUNK.unpack(parts[0])[1:])
        head = self._announcement.message
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
