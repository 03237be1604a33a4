# SPDX-License-Identifier: Apache-2.0
"""One logical message: a fixed preamble and a header in the first frame, raw bytes in the others.

A single small payload follows the header in the first frame instead: a frame less is 20 us less a round trip.

The invariant: `decode` returns a message whose every count and size lies within `Limits` and agrees with the bytes
that came, or raises `WireError`; it copies nothing but the header, and that only after its size was checked. The
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
VERSION = 2
INLINE = 1
"""Flag: the one payload frame follows the header in the first frame."""
INLINE_BELOW_BYTES = 64 << 10
"""Header and payload together."""
APART = 2
"""Flag: no payload frame travels with the message; a table follows the header (`zpptool.wire.link.fragments`)."""

CHUNK_BYTES = 1 << 20
"""Payload that comes apart comes in chunks of this size: it fits a processor's cache, and memory of that size is found
again without page faults."""

# magic, version, kind, flags, session, source, frames, epoch, header bytes, sequence; little-endian, 32 bytes
_PREAMBLE = struct.Struct("<4sBBHIhHIIQ")
PREAMBLE_BYTES = _PREAMBLE.size


class Kind(IntEnum):
    """What the header and the frames mean."""

    TENSORS = 1
    """A tensor dict, as `zpptool.wire.message.tensors` packs it."""
    CONTROL = 2
    """Anything else; header and frames belong to whoever sends it."""
    LINK = 3
    """Messages between the two ends of a link (`zpptool.wire.protocol.link_messages`), never seen by its users."""


_KINDS = {int(kind): kind for kind in Kind}  # a lookup costs a tenth of the enum's own call


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """Upper bounds a received message must keep; sizes in bytes.

    The defaults leave room for a 16384-token step of a 16384-wide model in float32. They are the most that a hostile
    peer can make this process hold for one message, so lower them where the model is known.
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
        """The lower of both, bound by bound: what one side may send and the other accepts."""
        return Limits(*[min(getattr(self, bound.name), getattr(other, bound.name)) for bound in fields(Limits)])


class Message(msgspec.Struct, frozen=True, gc=False):
    """One received message.

    Attributes:
        kind: what it carries.
        source: the place it was first sent from: a stage index or `HEAD`. A relay keeps it.
        epoch: the head's count of lost stages when it was sent.
        sequence: its number in its session, from 0.
        session: random number that the sender drew when it welcomed this receiver.
        header: opaque here.
        frames: the payload. Each view keeps the received memory alive, and nobody else writes to it.
    """

    kind: Kind
    source: int
    epoch: int
    sequence: int
    session: int
    header: bytes
    frames: tuple[memoryview, ...]


def check_sizes(header_bytes: int, frame_bytes: Sequence[int], limits: Limits) -> None:
    """Raise `WireError` when a message of these sizes would not keep the limits. Both ends ask."""
    total = PREAMBLE_BYTES + header_bytes + sum(frame_bytes)
    least = min(limits.max_message_bytes, limits.max_frame_bytes, limits.max_header_bytes)
    if total <= least and len(frame_bytes) <= limits.max_frames:
        return  # as nearly every message
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
    """The frames of one message as they go over the wire; payload frames that travel alone are not copied.

    Args:
        frames: its payload.
        table: how the payload comes, where it comes apart; then the frames are only counted.

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
        WireError: names the first thing that is wrong; a payload that comes apart is wrong here.
    """
    opened = open_first(frames, limits)
    if opened.table is not None:
        raise WireError("its frames come apart, where none are awaited.")
    return opened.message


class Opened(NamedTuple):
    """A message as far as it came at once.

    Attributes:
        message: all of it; without frames where they come apart.
        announced: how many frames there are.
        table: how the frames come where they come apart, else None.
    """

    message: Message
    announced: int
    table: memoryview | None


def open_first(frames: Sequence[Buffer], limits: Limits) -> Opened:
    """As `decode`, for a message whose payload may come apart.

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
