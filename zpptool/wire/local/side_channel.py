# SPDX-License-Identifier: Apache-2.0
"""The interface of a side channel: a sender puts payload frames into it, a receiver gets them out.

The invariant: a frame that a `SideChannelSender` has put stays unchanged until the receiver's view of it is released,
and a `SideChannelReceiver` returns only bytes that were put for that very ticket. A channel that is missing, full or
broken never fails a message: the frame is then sent over the socket, in chunks (`zpptool.wire.link.fragments`).

Frames are host memory. Another channel for them is one more file with these two classes, and a line in `SIDE_CHANNELS`.
"""

from __future__ import annotations

from typing import Protocol

from zpptool.wire.message.framing import Buffer


class SideChannelSender(Protocol):
    """The sender's end, opened when it welcomes a receiver that offers the channel."""

    @property
    def offer(self) -> str:
        """What the receiver needs to open its end, as it is sent in the welcome."""

    @property
    def ready(self) -> bool:
        """Whether the receiver has opened its end."""

    def put(self, frame: Buffer) -> int | None:
        """Copy a frame into the channel.

        Returns:
            the frame's ticket (64 bits); None when there is no room now.
        """

    def close(self) -> None:
        """Put nothing more. What was put can still be got."""


class SideChannelReceiver(Protocol):
    """The receiver's end, opened from the sender's offer."""

    def get(self, ticket: int, nbytes: int) -> memoryview:
        """The frame of a ticket, writable; its memory returns to the sender when no view of it is left.

        Raises:
            WireError: there is no such frame (now).
        """

    def close(self) -> None:
        """Get nothing more. Views that were handed out stay valid."""
