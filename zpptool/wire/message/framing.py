# SPDX-License-Identifier: Apache-2.0
"""One logical message: a fixed preamble and a header in the first frame, raw bytes in the others.

A single small payload follows the header in the first frame instead: that saves 20 us a round trip.

The invariant: `decode` returns a message whose every count and size is within `Limits` and agrees with the received
bytes, or raises `WireError`; it copies nothing but the header, and that only after its size was checked. The
header is opaque here (msgpack by convention). `docs/wire.md` is the description for other implementations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import msgspec

from zpptool.places import HEAD, place_name
from zpptool.wire.link_errors import WireError

__all__ = [
    "CHUNK_BYTES",
    "HEAD",
    "PREAMBLE_BYTES",
    "Buffer",
    "Kind",
    "Limits",
    "Message",
    "Opened",
    "WireError",
    "check_sizes",
    "decode",
    "encode",
    "open_first",
    "place_name",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"ZPPW"
VERSION = 3
INLINE = 1
"""Flag: the one payload frame follows the header in the first frame."""
INLINE_BELOW_BYTES = 64 << 10
"""Header and payload together."""
APART = 2
"""Flag: no payload frame is in this ZeroMQ message; a table follows the header (`zpptool.wire.link.fragments`)."""

CHUNK_BYTES = 1 << 20
"""An announced payload is sent in chunks of this size: it fits a processor's cache, and memory of that size is reused
without page faults."""

# magic, version, kind, flags, session, source, frames, epoch, header bytes, sequence; little-endian, 32 bytes
_PREAMBLE = struct.Struct("<4sBBHIhHIIQ")
PREAMBLE_BYTES = _PREAMBLE.size


class Kind(IntEnum):
    """What the header and the frames mean."""

    TENSORS = 1
    """A tensor dict, as `zpptool.wire.message.tensors` packs it."""
    CONTROL = 2
    """Anything else; the sender defines header and frames."""
    LINK = 3
    """Messages between the two ends of a link (`zpptool.wire.protocol.link_messages`), not delivered to its users."""


_KINDS = {int(kind): kind for kind in Kind}  # a lookup costs a tenth of the enum's own call


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """Upper bounds of a received message; sizes in bytes.

    The defaults leave room for a 16384-token step of a 16384-wide model in float32. They are the most memory that a
    hostile peer can make this process allocate for one message, so lower them where the model is known.
    """

    max_frames: int = 1024
    max_header_bytes: int = 64 << 20
    max_frame_bytes: int = 1 << 30
    max_message_bytes: int = 4 << 30
    max_schema_bytes: int = 256 << 10
    """The part of a tensor header that names tensors, dtypes and shapes."""
    max_tensors: int = 1023
    max_rank: int = 16
    max_dim: int = 1 << 40

    def within(self, other: Limits) -> Limits:
        """The lower of both, bound by bound."""
        return Limits(*[min(getattr(self, bound.name), getattr(other, bound.name)) for bound in fields(Limits)])


class Message(msgspec.Struct, frozen=True, gc=False):
    """One received message.

    Attributes:
        kind: what it carries.
        source: the place that has first sent it: a stage index or `HEAD`. A relay keeps it.
        epoch: the ring's epoch when it was sent. The head counts epochs from 1, and begins another one whenever the
            ring has to be formed anew: after a loss, and for a planned change. A link outside a ring counts from 0.
        sequence: its number in its session, from 0.
        session: random number that the sender drew when it welcomed this receiver.
        header: opaque here.
        frames: the payload. Each view keeps the received memory alive, and nothing else writes to it.
    """

    kind: Kind
    source: int
    epoch: int
    sequence: int
    session: int
    header: bytes
    frames: tuple[memoryview, ...]


def check_sizes(header_bytes: int, frame_bytes: Sequence[int], limits: Limits) -> None:
    """Raise `WireError` for a message of these sizes that exceeds the limits. Both ends check."""
    total = PREAMBLE_BYTES + header_bytes + sum(frame_bytes)
    least = min(limits.max_message_bytes, limits.max_frame_bytes, limits.max_header_bytes)
    if total <= least and len(frame_bytes) <= limits.max_frames:
        return  # true of nearly every message
    if len(frame_bytes) > limits.max_frames:
        raise WireError(f"{len(frame_bytes)} frames, at most {limits.max_frames} are allowed.")
    if header_bytes > limits.max_header_bytes:
        raise WireError(f"a header of {header_bytes} bytes, at most {limits.max_header_bytes} are allowed.")
    for index, nbytes in enumerate(frame_bytes):
        if nbytes > limits.max_frame_bytes:
            raise WireError(f"frame {index} has {nbytes} bytes, at most {limits.max_frame_bytes} are allowed.")
    if total > limits.max_message_bytes:
        raise WireError(f"a message of {total} bytes, at most {limits.max_message_bytes} are allowed.")


def encode(
    kind: Kind,
    header: bytes,
    frames: Sequence[Buffer],
    *,
    source: int,
    epoch: int,
    sequence: int,
    session: int,
    table: bytes = b"",
) -> tuple[Buffer, ...]:
    """The frames of one message as they are sent; payload frames of their own are not copied.

    Args:
        kind: what header and frames mean.
        header: opaque here.
        frames: the payload.
        source: the place that has first sent it.
        epoch: the ring's epoch.
        sequence: number of the message in its session.
        session: number of the session.
        table: of an announced message; then the frames are only counted.

    Raises:
        WireError: a number does not fit its field.
    """
    inline = len(frames) == 1 and not table and len(header) + memoryview(frames[0]).nbytes < INLINE_BELOW_BYTES
    try:
        preamble = _PREAMBLE.pack(
            MAGIC,
            VERSION,
            kind,
            APART if table else INLINE if inline else 0,
            session,
            source,
            len(frames),
            epoch,
            len(header),
            sequence,
        )
    except struct.error as error:
        raise WireError(
            f"source {source}, epoch {epoch}, sequence {sequence}, {len(frames)} frames or a header of "
            f"{len(header)} bytes does not fit the preamble ({error})."
        ) from error
    if table:
        return (b"".join((preamble, header, table)),)
    if inline:
        return (b"".join((preamble, header, frames[0])),)
    return (preamble + header, *frames)


def decode(frames: Sequence[Buffer], limits: Limits) -> Message:
    """The message in these frames, the first of which holds preamble and header.

    Raises:
        WireError: names the first thing that is wrong; an announcement is wrong here.
    """
    opened = open_first(frames, limits)
    if opened.table is not None:
        raise WireError("it announces frames, where none are expected.")
    return opened.message


class Opened(NamedTuple):
    """What one ZeroMQ message holds.

    Attributes:
        message: the message; without frames if it is an announcement.
        announced: how many frames there are.
        table: how the frames of an announcement are sent; None for a complete message.
    """

    message: Message
    announced: int
    table: memoryview | None


def open_first(frames: Sequence[Buffer], limits: Limits) -> Opened:
    """As `decode`, for a message that may be an announcement.

    Raises:
        WireError: names the first thing that is wrong.
    """
    if not frames:
        raise WireError("no frames at all.")
    first = memoryview(frames[0])
    if first.nbytes < PREAMBLE_BYTES:
        raise WireError(f"the first frame has {first.nbytes} bytes, a preamble has {PREAMBLE_BYTES}.")
    magic, version, kind, flags, session, source, count, epoch, header_bytes, sequence = _PREAMBLE.unpack_from(first)
    if magic != MAGIC:
        raise WireError(f"it begins with {magic!r} instead of {MAGIC!r}; the peer speaks another protocol.")
    if version != VERSION:
        raise WireError(f"wire version {version}, this side speaks {VERSION}.", "Run one zpptool release everywhere.")
    if kind not in _KINDS:
        raise WireError(f"unknown kind {kind}.")
    if source < HEAD:
        raise WireError(f"source {source} is neither a stage nor the head.")
    end = PREAMBLE_BYTES + header_bytes
    if first.nbytes < end or (flags == 0 and first.nbytes > end):
        raise WireError(f"a header of {first.nbytes - PREAMBLE_BYTES} bytes came, {header_bytes} were announced.")
    payload: tuple[memoryview, ...] = ()
    table = None
    if flags == INLINE:
        payload = (first[end:],)
    elif flags == APART:
        table = first[end:]
    elif flags:
        raise WireError(f"unknown flags {flags:#06x}.")
    if len(frames) > 1:
        payload += tuple([memoryview(frame) for frame in frames[1:]])
    if len(payload) != (0 if flags == APART else count):
        raise WireError(f"{len(payload)} frames came, {count} were announced.")
    check_sizes(header_bytes, [frame.nbytes for frame in payload], limits)
    header = bytes(first[PREAMBLE_BYTES:end])
    return Opened(Message(_KINDS[kind], source, epoch, sequence, session, header, payload), count, table)
