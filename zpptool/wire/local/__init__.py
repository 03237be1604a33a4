# SPDX-License-Identifier: Apache-2.0
"""How payload gets to the other side beside the socket: `base.py` is the interface, each way one file.

The invariant: `WAYS` is the whole list. Both ends go by its names when they greet, and by its numbers in a parcel's
table, where 0 is the socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from zpptool.wire.local.shared_memory import SharedMemoryReceiver, SharedMemorySender, this_host
from zpptool.wire.local.side_channel import SideChannelReceiver, SideChannelSender


class Way(NamedTuple):
    """One way.

    Attributes:
        number: its number in a table.
        here: what a receiver says when it greets, and a sender compares with its own; None where the way is not there.
        giver: makes the sender's end; OSError where it cannot be.
        taker: makes the receiver's end from the giver's offer; WireError where it cannot be.
    """

    number: int
    here: Callable[[], str | None]
    giver: Callable[[], SideChannelSender]
    taker: Callable[[str], SideChannelReceiver]


WAYS: Mapping[str, Way] = {"memfd": Way(1, this_host, SharedMemorySender, SharedMemoryReceiver)}
