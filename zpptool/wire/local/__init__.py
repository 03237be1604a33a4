# SPDX-License-Identifier: Apache-2.0
"""Side channels for payloads of two processes on one host: `side_channel.py` is the interface, each channel one file.

The invariant: `SIDE_CHANNELS` is the whole list. Both ends use its names in the handshake, and its numbers in the table
of an announcement, where 0 is the ZeroMQ socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from zpptool.wire.local.shared_memory import SharedMemoryReceiver, SharedMemorySender, this_host
from zpptool.wire.local.side_channel import SideChannelReceiver, SideChannelSender


class SideChannel(NamedTuple):
    """One kind of side channel.

    Attributes:
        number: its number in a table.
        location: where this process is, which both ends must share; None where this system has no such channel.
        open_sender: opens the sender's end; raises OSError where it cannot.
        open_receiver: opens the receiver's end from the sender's offer; raises WireError where it cannot.
    """

    number: int
    location: Callable[[], str | None]
    open_sender: Callable[[], SideChannelSender]
    open_receiver: Callable[[str], SideChannelReceiver]


SIDE_CHANNELS: Mapping[str, SideChannel] = {
    "memfd": SideChannel(1, this_host, SharedMemorySender, SharedMemoryReceiver)
}
