# SPDX-License-Identifier: Apache-2.0
"""How one session's messages leave: small ones at once, by the shortcut if there is one, large ones as a parcel by the
best way there is.

The invariant: a message becomes one or more ZeroMQ messages that `Inbound` makes the same message of again. The frames
of a parcel are put aside where the session has a way and that has room, and follow in chunks where not; nothing waits
for a way, so a receiver that keeps its tensors slows itself down and stops nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from zpptool.wire.compression.adaptive import Gauge
from zpptool.wire.compression.bandwidth import Rate
from zpptool.wire.compression.byte_planes import WIDTHS, shrink
from zpptool.wire.link.fragments import PLAIN, PLANES, Chunk, Entry, cut, encode_chunk, encode_entries
from zpptool.wire.local import WAYS
from zpptool.wire.local.side_channel import SideChannelSender
from zpptool.wire.local.unix_socket import NAME as SHORTCUT
from zpptool.wire.local.unix_socket import UnixSocketSender, this_place
from zpptool.wire.message.framing import CHUNK_BYTES, INLINE_BELOW_BYTES, Buffer, Kind, encode

ASIDE_FROM_BYTES = INLINE_BELOW_BYTES
"""Payloads of this size and more become parcels where there is a way beside the socket."""
APART_FROM_BYTES = 2 << 20
"""Payloads of this size and more become parcels, and those with a frame that is longer than a chunk."""


class Envelope(NamedTuple):
    """What is on the outside of a message."""

    kind: Kind
    source: int
    epoch: int
    sequence: int
    session: int


class Outbound:
    """The sender's half of a session's ways.

    Args:
        offers: what the receiver's greeting offers.
        gauge: decides whether to compress.
        measure: asks the connection how fast it delivers.
        shared: whether ways beside the socket may be used.

    Attributes:
        offers: which of them the welcome offers.
        shortcut: where messages of one part may go instead, if they go there before any that follows; None for nowhere.
    """

    def __init__(
        self,
        offers: Mapping[str, str],
        gauge: Gauge,
        measure: Callable[[], Rate | None],
        *,
        shared: bool = True,
    ) -> None:
        self._gauge = gauge
        self._measure = measure
        self._way = 0
        self._giver: SideChannelSender | None = None
        self.offers: dict[str, str] = {}
        for name, way in WAYS.items():
            here = way.here() if shared else None
            if here is None or offers.get(name) != here:
                continue
            try:
                self._giver = way.giver()
            except OSError:
                continue
            self._way = way.number
            self.offers[name] = self._giver.offer
            break
        self.shortcut: UnixSocketSender | None = None
        if shared and offers.get(SHORTCUT, "") == this_place():
            with suppress(OSError):
                self.shortcut = UnixSocketSender()
                self.offers[SHORTCUT] = self.shortcut.offer

    @property
    def way(self) -> str:
        """The name of the way in use, `socket` where there is none (yet)."""
        names = {way.number: name for name, way in WAYS.items()}
        return names[self._way] if self._giver is not None and self._giver.ready else "socket"

    def encode(
        self, envelope: Envelope, header: bytes, frames: Sequence[Buffer]
    ) -> tuple[Sequence[Buffer], Iterable[Sequence[Buffer]]]:
        """The ZeroMQ messages to send for a message, each in its parts: the first, and the others (an empty tuple for
        none), which are made as they are asked for.

        Raises:
            WireError: a number does not fit its field.
        """
        sizes = [memoryview(frame).nbytes for frame in frames]
        nbytes = sum(sizes)
        aside = nbytes >= ASIDE_FROM_BYTES and self._giver is not None and self._giver.ready
        if aside:
            entries = [self._put(memoryview(frame)) for frame in frames]
        elif nbytes >= APART_FROM_BYTES or (nbytes > CHUNK_BYTES and max(sizes) > CHUNK_BYTES):
            entries = [Entry(0, size) for size in sizes]
        else:
            entries = []
        rest = sum([entry.nbytes for entry in entries if not entry.way]) if entries else nbytes
        compress = self._gauge.decide(rest, self._measure)
        if compress and not entries:
            entries = [Entry(0, size) for size in sizes]
        first = self._encoded(envelope, header, frames, encode_entries(entries) if entries else b"")
        if entries and rest:
            return first, self._chunks(envelope, entries, frames, compress=compress)
        return first, ()

    @staticmethod
    def _encoded(envelope: Envelope, header: bytes, frames: Sequence[Buffer], table: bytes) -> Sequence[Buffer]:
        kind, source, epoch, sequence, session = envelope
        return encode(
            kind, header, frames, source=source, epoch=epoch, sequence=sequence, session=session, table=table
        )  # fmt: skip

    def close(self) -> None:
        """End the session."""
        if self._giver is not None:
            self._giver.close()
        if self.shortcut is not None:
            self.shortcut.close()

    def _put(self, frame: memoryview) -> Entry:
        ticket = None
        if self._giver is not None and frame.nbytes >= ASIDE_FROM_BYTES:
            ticket = self._giver.put(frame)
        return Entry(0, frame.nbytes) if ticket is None else Entry(self._way, frame.nbytes, ticket)

    def _chunks(
        self, envelope: Envelope, entries: Sequence[Entry], frames: Sequence[Buffer], *, compress: bool
    ) -> Iterator[Sequence[Buffer]]:
        number = 0
        for index, (entry, frame) in enumerate(zip(entries, frames, strict=True)):
            if entry.way or not entry.nbytes:
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
        self._gauge.note(piece.nbytes, shrunk_to, time.perf_counter() - began)
        return packed
