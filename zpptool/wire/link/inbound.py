# SPDX-License-Identifier: Apache-2.0
"""How one session's messages arrive: what `Outbound` made several ZeroMQ messages of becomes one again.

The invariant: a message comes out whole or not at all, its sizes checked before memory is taken for it. Between a
parcel and the last of its chunks no other message is accepted; words of the link itself may come at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpptool.wire.link.buffer_pool import Pool
from zpptool.wire.link.fragments import Assembly, Entry, Parcel, decode_entries, is_chunk
from zpptool.wire.link_errors import WireError
from zpptool.wire.local import WAYS
from zpptool.wire.local.side_channel import SideChannelReceiver
from zpptool.wire.local.unix_socket import NAME as SHORTCUT
from zpptool.wire.local.unix_socket import UnixSocketReceiver, this_place
from zpptool.wire.message.framing import Buffer, Kind, Limits, Message, check_sizes, open_first


class Inbound:
    """The receiver's half of a link's ways; it outlives its sessions.

    Args:
        limits: what is accepted of one message.
        shared: whether ways beside the socket may be used.

    Attributes:
        offers: what the greeting says of them.
        shortcut: where messages of one part may come instead, ahead of any that is at the socket; None for nowhere.
    """

    def __init__(self, limits: Limits, *, shared: bool = True) -> None:
        self._limits = limits
        self._pool = Pool()
        self._takers: dict[int, SideChannelReceiver] = {}
        self._assembly: Assembly | None = None
        self._begun = False
        self.shortcut: UnixSocketReceiver | None = None
        here = {SHORTCUT: this_place(), **{name: way.here() for name, way in WAYS.items()}} if shared else {}
        self.offers = {name: said for name, said in here.items() if said is not None}

    def begin(self, offers: Mapping[str, str]) -> str | None:
        """Begin a session: what the last one left undone is forgotten.

        Args:
            offers: what the sender's welcome offers.

        Returns:
            why an offered way cannot be used, in words; the sender goes by the socket then. None for no such trouble.
        """
        self.end()
        self._begun = True
        trouble = None
        for name, offer in offers.items():
            if name not in self.offers:
                continue
            try:
                if name == SHORTCUT:
                    self.shortcut = UnixSocketReceiver(offer)
                else:
                    self._takers[WAYS[name].number] = WAYS[name].taker(offer)
            except WireError as error:
                trouble = error.message
        return trouble

    def end(self) -> None:
        """End the session; frames that were handed out stay whole."""
        self._begun = False
        self._assembly = None
        for taker in self._takers.values():
            taker.close()
        self._takers = {}
        if self.shortcut is not None:
            self.shortcut.close()
            self.shortcut = None

    def take(self, parts: Sequence[Buffer]) -> Message | None:
        """The message that has become whole by these parts of one ZeroMQ message; None while some are to come.

        Raises:
            WireError: they cannot be right. The message that they were to belong to will not come.
        """
        if not parts:
            raise WireError("no frames at all.")
        try:
            if len(parts) == 2 and is_chunk(parts):
                return self._add(parts)
            return self._open(parts)
        except WireError:
            self._assembly = None
            raise

    def _add(self, parts: Sequence[Buffer]) -> Message | None:
        if self._assembly is None:
            raise WireError("a chunk of a message that is not under way.")
        self._assembly.add(parts)
        return self._finished()

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
        frames = [self._got(entry) for entry in entries]
        self._assembly = Assembly(Parcel(message, entries), frames, self._pool.take)
        return self._finished()

    def _got(self, entry: Entry) -> memoryview | None:
        if not entry.way:
            return None
        if entry.way not in self._takers:
            raise WireError(f"a frame comes by way {entry.way}, which is not in use.")
        return self._takers[entry.way].get(entry.ticket, entry.nbytes)

    def _finished(self) -> Message | None:
        assert self._assembly is not None
        message = self._assembly.whole
        if message is not None:
            self._assembly = None
        return message
