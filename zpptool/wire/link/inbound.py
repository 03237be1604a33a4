# SPDX-License-Identifier: Apache-2.0
"""How one session's messages arrive: what `Outbound` has split into several ZeroMQ messages becomes one again.

The invariant: a message is returned whole or not at all, in the order in which it was sent, and its sizes are checked
before memory is allocated for it. Between an announcement and the last of its chunks no other message is accepted,
except link messages; those that come while frames of it are on their way in the sealed channel are kept until it is
whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from zpptool.wire.link.buffer_pool import BufferPool
from zpptool.wire.link.fragments import Announcement, Assembly, Entry, decode_entries, is_chunk
from zpptool.wire.link_errors import SealedChannelLost, WireError
from zpptool.wire.local import SIDE_CHANNELS
from zpptool.wire.local.side_channel import SideChannelReceiver
from zpptool.wire.local.unix_socket import NAME as UNIX_SOCKET
from zpptool.wire.local.unix_socket import UnixSocketReceiver, this_namespace
from zpptool.wire.message.framing import Buffer, Kind, Limits, Message, check_sizes, open_first
from zpptool.wire.sealed.offer import CHANNEL as SEALED_CHANNEL
from zpptool.wire.sealed.offer import NAME as SEALED
from zpptool.wire.sealed.receiver import SealedReceiver
from zpptool.wire.sealed.transfer import Transfer

OpenSealed = Callable[[str], SealedReceiver]
"""Opens the receiver's end of a sealed channel from the sender's offer; raises `WireError` where it cannot."""


class Inbound:
    """The receiver's half of a link's encoding; it outlives its sessions.

    Args:
        limits: what is accepted of one message.
        shared: whether side channels and the Unix socket may be used.
        open_sealed: see `OpenSealed`; None for a link without keys.

    Attributes:
        offers: the side channels that this end can use, by name, as they are sent in the greeting.
        unix_socket: where messages of one part may arrive instead of at ZeroMQ; None for nowhere.
        sealed: the sealed channel of the session. Without one, None, `poll` never has a message.
    """

    def __init__(self, limits: Limits, open_sealed: OpenSealed | None = None, *, shared: bool = True) -> None:
        self._limits = limits
        self._open_sealed = open_sealed
        self._pool = BufferPool()
        self._side_channels: dict[int, SideChannelReceiver] = {}
        self.sealed: SealedReceiver | None = None
        self._assembly: Assembly | None = None
        self._kept: deque[Sequence[Buffer]] = deque()
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
            try:
                if name == SEALED and self._open_sealed is not None:
                    self.sealed = self._open_sealed(offer)
                elif name not in self.offers:
                    continue
                elif name == UNIX_SOCKET:
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
        self._kept.clear()
        if self.sealed is not None:
            self.sealed.close()
            self.sealed = None
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
        if self.sealed is not None and (self._awaits_sealed or self._kept) and not self._is_link_message(parts):
            self._kept.append(parts)
            return None
        return self._accept(parts)

    def poll(self) -> Message | None:
        """The message that the sealed channel has completed, or the next of those that were kept meanwhile.

        Raises:
            SealedChannelLost: the channel has failed, and the message with it.
            WireError: a message that was kept is malformed. It is dropped.
        """
        if self.sealed is None:
            return None
        message = None
        if self._awaits_sealed:
            message = self._completed()
            if message is None and self.sealed is not None and self.sealed.fault is not None:
                raise SealedChannelLost(self.sealed.fault.message)
        while message is None and self._kept and not self._awaits_sealed:
            message = self._accept(self._kept.popleft())
        return message

    @property
    def _awaits_sealed(self) -> bool:
        """Whether all that is missing of the message under way is in the sealed channel."""
        return self._assembly is not None and self._assembly.has_all_chunks

    def _is_link_message(self, parts: Sequence[Buffer]) -> bool:
        if len(parts) == 2 and is_chunk(parts):
            return False
        opened = open_first(parts, self._limits)
        return opened.message.kind is Kind.LINK and opened.table is None

    def _accept(self, parts: Sequence[Buffer]) -> Message | None:
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
            raise WireError("it came before a welcome; the peer is not the other end of a link.")
        if self._assembly is not None:
            raise WireError(f"message {message.sequence} came before the one under way was whole.")
        if opened.table is None:
            return message
        entries = decode_entries(opened.table, opened.announced)
        check_sizes(len(message.header), [entry.nbytes for entry in entries], self._limits)
        transfers: list[Transfer] = []
        frames = [self._from_side_channel(entry, transfers) for entry in entries]
        self._assembly = Assembly(Announcement(message, entries), frames, self._pool.take, transfers)
        return self._completed()

    def _from_side_channel(self, entry: Entry, transfers: list[Transfer]) -> memoryview | None:
        """The frame of an entry; None where it comes in chunks. One that is still on its way adds its transfer."""
        if not entry.channel:
            return None
        if entry.channel == SEALED_CHANNEL and self.sealed is not None and entry.nbytes:
            frame = self._pool.take(entry.nbytes)
            transfers.append(self.sealed.expect(entry.ticket, frame))
            return frame
        if entry.channel not in self._side_channels:
            raise WireError(f"a frame comes by side channel {entry.channel}, which is not in use.")
        return self._side_channels[entry.channel].get(entry.ticket, entry.nbytes)

    def _completed(self) -> Message | None:
        assert self._assembly is not None
        message = self._assembly.message
        if message is not None:
            self._assembly = None
        return message
