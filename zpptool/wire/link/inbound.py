# SPDX-License-Identifier: Apache-2.0
"""How one session's messages arrive: what `Outbound` has split into several ZeroMQ messages becomes one again.

The invariant: a message is returned whole or not at all, and its sizes are checked before memory is allocated for it.
Between an announcement and the last of its chunks no other message is accepted, except link messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpptool.wire.link.buffer_pool import BufferPool
from zpptool.wire.link.fragments import Announcement, Assembly, Entry, decode_entries, is_chunk
from zpptool.wire.link_errors import WireError
from zpptool.wire.local import SIDE_CHANNELS
from zpptool.wire.local.side_channel import SideChannelReceiver
from zpptool.wire.local.unix_socket import NAME as UNIX_SOCKET
from zpptool.wire.local.unix_socket import UnixSocketReceiver, this_namespace
from zpptool.wire.message.framing import Buffer, Kind, Limits, Message, check_sizes, open_first


class Inbound:
    """The receiver's half of a link's encoding; it outlives its sessions.

    Args:
        limits: what is accepted of one message.
        shared: whether side channels and the Unix socket may be used.

    Attributes:
        offers: the side channels that this end can use, by name, as they are sent in the greeting.
        unix_socket: where messages of one part may arrive instead of at ZeroMQ; None for nowhere.
    """

    def __init__(self, limits: Limits, *, shared: bool = True) -> None:
        self._limits = limits
        self._pool = BufferPool()
        self._side_channels: dict[int, SideChannelReceiver] = {}
        self._assembly: Assembly | None = None
        self._begun = False
        self.unix_socket: UnixSocketReceiver | None = None
        locations: dict[str, str | None] = {}
        if shared:
            locations[UNIX_SOCKET] = this_namespace()
            locations |= {name: channel.location() for name, channel in SIDE_CHANNELS.items()}
        self.offers = {name: location for name, location in locations.items() if location is not None}

    def begin(self, offers: Mapping[str, str]) -> str | None:
        """Begin a session, and drop what the last one has left incomplete.

        Args:
            offers: what the sender's welcome offers.

        Returns:
            why an offered side channel cannot be used; the sender uses the ZeroMQ socket then. None for no problem.
        """
        self.end()
        self._begun = True
        problem = None
        for name, offer in offers.items():
            if name not in self.offers:
                continue
            try:
                if name == UNIX_SOCKET:
                    self.unix_socket = UnixSocketReceiver(offer)
                else:
                    channel = SIDE_CHANNELS[name]
                    self._side_channels[channel.number] = channel.open_receiver(offer)
            except WireError as error:
                problem = error.message
        return problem

    def end(self) -> None:
        """End the session; frames that were handed out stay valid."""
        self._begun = False
        self._assembly = None
        for channel in self._side_channels.values():
            channel.close()
        self._side_channels = {}
        if self.unix_socket is not None:
            self.unix_socket.close()
            self.unix_socket = None

    def take(self, parts: Sequence[Buffer]) -> Message | None:
        """Add the parts of one ZeroMQ message.

        Returns:
            the message that is complete now; None while parts of it are missing.

        Raises:
            WireError: they are malformed. The message that they belong to is dropped.
        """
        if not parts:
            raise WireError("no frames at all.")
        try:
            if len(parts) == 2 and is_chunk(parts):
                return self._add_chunk(parts)
            return self._open(parts)
        except WireError:
            self._assembly = None
            raise

    def _add_chunk(self, parts: Sequence[Buffer]) -> Message | None:
        if self._assembly is None:
            raise WireError("a chunk of a message that is not under way.")
        self._assembly.add(parts)
        return self._completed()

    def _open(self, parts: Sequence[Buffer]) -> Message | None:
        opened = open_first(parts, self._limits)
        message = opened.message
        if message.kind is Kind.LINK and opened.table is None:
            return message
        if not self._begun:
            raise WireError("it came before a welcome; the peer is no link's other end.")
        if self._assembly is not None:
            raise WireError(f"message {message.sequence} came before the one under way was whole.")
        if opened.table is None:
            return message
        entries = decode_entries(opened.table, opened.announced)
        check_sizes(len(message.header), [entry.nbytes for entry in entries], self._limits)
        frames = [self._from_side_channel(entry) for entry in entries]
        self._assembly = Assembly(Announcement(message, entries), frames, self._pool.take)
        return self._completed()

    def _from_side_channel(self, entry: Entry) -> memoryview | None:
        """The frame of an entry; None where it comes in chunks."""
        if not entry.channel:
            return None
        if entry.channel not in self._side_channels:
            raise WireError(f"a frame comes by side channel {entry.channel}, which is not in use.")
        return self._side_channels[entry.channel].get(entry.ticket, entry.nbytes)

    def _completed(self) -> Message | None:
        assert self._assembly is not None
        message = self._assembly.message
        if message is not None:
            self._assembly = None
        return message
