# SPDX-License-Identifier: Apache-2.0
"""How one session's messages are sent: small ones at once, large ones as an announcement with side channel or chunks.

The invariant: a message becomes one or more ZeroMQ messages from which `Inbound` makes the same message again. The
frames of an announced message are put into the side channel where the session has one with room for them, and follow in
chunks where not. Nothing waits for a side channel, so a receiver that keeps its tensors slows down only itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from zpptool.wire.compression.adaptive import AdaptiveCompression
from zpptool.wire.compression.bandwidth import Rate
from zpptool.wire.compression.byte_planes import WIDTHS, shrink
from zpptool.wire.link.fragments import PLAIN, PLANES, Chunk, Entry, cut, encode_chunk, encode_entries
from zpptool.wire.local import SIDE_CHANNELS
from zpptool.wire.local.side_channel import SideChannelSender
from zpptool.wire.local.unix_socket import NAME as UNIX_SOCKET
from zpptool.wire.local.unix_socket import UnixSocketSender, this_namespace
from zpptool.wire.message.framing import CHUNK_BYTES, INLINE_BELOW_BYTES, Buffer, Kind, encode
from zpptool.wire.sealed.offer import CHANNEL as SEALED_CHANNEL
from zpptool.wire.sealed.offer import NAME as SEALED
from zpptool.wire.sealed.offer import VERSION as SEALED_VERSION
from zpptool.wire.sealed.sender import SealedSender
from zpptool.wire.sealed.transfer import Transfer

SIDE_CHANNEL_FROM_BYTES = INLINE_BELOW_BYTES
"""Payloads of this size and more are announced where the session has a side channel."""
SEALED_FROM_BYTES = 256 << 10
"""Frames of this size and more are sealed where the session has a sealed channel."""
CHUNKS_FROM_BYTES = 2 << 20
"""Payloads of this size and more are announced, and those with a frame that is longer than a chunk."""


class Envelope(NamedTuple):
    """The fields of a message's preamble that the link sets."""

    kind: Kind
    source: int
    epoch: int
    sequence: int
    session: int


class Encoded(NamedTuple):
    """One message as it is sent.

    Attributes:
        first: the parts of the first ZeroMQ message.
        others: the other ZeroMQ messages, encoded as they are iterated over; an empty tuple for none.
        transfers: of the frames that the sealed channel reads from the caller's memory.
    """

    first: Sequence[Buffer]
    others: Iterable[Sequence[Buffer]]
    transfers: Sequence[Transfer] = ()


class Outbound:
    """The sender's half of a session's encoding.

    Args:
        offers: what the receiver's greeting offers.
        compression: decides whether to compress.
        measure: measures how fast the connection delivers.
        shared: whether side channels and the Unix socket may be used.
        open_sealed: opens the sender's end of a sealed channel, which is used where there is no other one; raises
            OSError where it cannot. None where the link has none.

    Attributes:
        offers: the side channels of this session, by name, as they are sent in the welcome.
        unix_socket: where messages of one part may be sent instead of by ZeroMQ, if the receiver has acknowledged all
            that were sent before; None for nowhere.
    """

    def __init__(
        self,
        offers: Mapping[str, str],
        compression: AdaptiveCompression,
        measure: Callable[[], Rate | None],
        *,
        shared: bool = True,
        open_sealed: Callable[[], SealedSender] | None = None,
    ) -> None:
        self._compression = compression
        self._measure = measure
        self._channel = 0
        self._channel_name = ""
        self._side_channel: SideChannelSender | None = None
        self.offers: dict[str, str] = {}
        for name, channel in SIDE_CHANNELS.items():
            location = channel.location() if shared else None
            if location is None or offers.get(name) != location:
                continue
            try:
                self._side_channel = channel.open_sender()
            except OSError:
                continue
            self._channel, self._channel_name = channel.number, name
            self.offers[name] = self._side_channel.offer
            break
        self.unix_socket: UnixSocketSender | None = None
        if shared and offers.get(UNIX_SOCKET, "") == this_namespace():
            with suppress(OSError):
                self.unix_socket = UnixSocketSender()
                self.offers[UNIX_SOCKET] = self.unix_socket.offer

        self._sealed: SealedSender | None = None
        if open_sealed is not None and self._side_channel is None and offers.get(SEALED) == SEALED_VERSION:
            with suppress(OSError):
                self._sealed = open_sealed()
                self.offers[SEALED] = self._sealed.offer

    @property
    def payload_channel(self) -> str:
        """The name of the side channel in use, `socket` where there is none (yet)."""
        if self._sealed is not None and self._sealed.ready:
            return SEALED
        return self._channel_name if self._side_channel is not None and self._side_channel.ready else "socket"

    @property
    def has_failed(self) -> bool:
        """Whether the session's sealed channel has failed, and messages with it."""
        return self._sealed is not None and self._sealed.failed

    def encode(self, envelope: Envelope, header: bytes, frames: Sequence[Buffer]) -> Encoded:
        """Encode one message. Frames for the sealed channel are on their way when this returns.

        Raises:
            WireError: a number does not fit its field.
        """
        sizes = [memoryview(frame).nbytes for frame in frames]
        nbytes = sum(sizes)
        aside = nbytes >= SIDE_CHANNEL_FROM_BYTES and self._side_channel is not None and self._side_channel.ready
        if aside:
            entries = [self._put(memoryview(frame)) for frame in frames]
        elif nbytes >= CHUNKS_FROM_BYTES or (nbytes > CHUNK_BYTES and max(sizes) > CHUNK_BYTES):
            entries = [Entry(0, size) for size in sizes]
        else:
            entries = []
        rest = sum([entry.nbytes for entry in entries if not entry.channel]) if entries else nbytes
        compress = self._compression.decide(rest, self._measure)
        if compress and not entries:
            entries = [Entry(0, size) for size in sizes]
        transfers: list[Transfer] = []
        if (
            self._sealed is not None
            and not compress
            and max(sizes, default=0) >= SEALED_FROM_BYTES
            and self._sealed.ready
        ):
            entries = [self._seal(self._sealed, memoryview(frame), transfers) for frame in frames]
            rest = sum([entry.nbytes for entry in entries if not entry.channel])
        first = self._encoded(envelope, header, frames, encode_entries(entries) if entries else b"")
        if entries and rest:
            return Encoded(first, self._chunks(envelope, entries, frames, compress=compress), transfers)
        return Encoded(first, (), transfers)

    def close(self) -> None:
        """End the session."""
        if self._side_channel is not None:
            self._side_channel.close()
        if self.unix_socket is not None:
            self.unix_socket.close()
        if self._sealed is not None:
            self._sealed.close()

    @staticmethod
    def _encoded(envelope: Envelope, header: bytes, frames: Sequence[Buffer], table: bytes) -> Sequence[Buffer]:
        kind, source, epoch, sequence, session = envelope
        return encode(
            kind, header, frames, source=source, epoch=epoch, sequence=sequence, session=session, table=table
        )  # fmt: skip

    def _put(self, frame: memoryview) -> Entry:
        """Put a frame into the side channel if there is room; otherwise it goes in chunks."""
        ticket = None
        if self._side_channel is not None and frame.nbytes >= SIDE_CHANNEL_FROM_BYTES:
            ticket = self._side_channel.put(frame)
        return Entry(0, frame.nbytes) if ticket is None else Entry(self._channel, frame.nbytes, ticket)

    def _seal(self, sealed: SealedSender, frame: memoryview, transfers: list[Transfer]) -> Entry:
        """Put a frame into the sealed channel, and add its transfer; a short one goes in chunks."""
        if frame.nbytes < SEALED_FROM_BYTES:
            return Entry(0, frame.nbytes)
        ticket, transfer = sealed.put(frame)
        transfers.append(transfer)
        return Entry(SEALED_CHANNEL, frame.nbytes, ticket)

    def _chunks(
        self, envelope: Envelope, entries: Sequence[Entry], frames: Sequence[Buffer], *, compress: bool
    ) -> Iterator[Sequence[Buffer]]:
        number = 0
        for index, (entry, frame) in enumerate(zip(entries, frames, strict=True)):
            if entry.channel or not entry.nbytes:
                continue
            view = memoryview(frame)
            width = view.itemsize if view.itemsize in WIDTHS else 1
            flat = view.cast("B")
            for part in cut(entry.nbytes):
                piece = flat[part]
                packed = self._shrink(piece, width) if compress else None
                codec = PLAIN if packed is None else PLANES
                head = Chunk(codec, width, index, envelope.session, piece.nbytes, number, envelope.sequence)
                yield encode_chunk(head), piece if packed is None else packed
                number += 1

    def _shrink(self, piece: memoryview, width: int) -> bytes | None:
        began = time.perf_counter()
        packed = shrink(piece, width)
        shrunk_to = piece.nbytes if packed is None else len(packed)
        self._compression.record(piece.nbytes, shrunk_to, time.perf_counter() - began)
        return packed
