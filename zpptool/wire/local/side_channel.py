# SPDX-License-Identifier: Apache-2.0
"""What a way beside the socket is: one end that puts payload frames somewhere, and one that gets them there.

The invariant: whatever a `SideChannelSender` has put stays as it is until the `SideChannelReceiver`'s view of it is
gone, and a taker hands out
no bytes that its giver did not put for that very ticket. A way that is not there, full or broken never fails a
message: the frame then goes over the socket, in chunks (`zpptool.wire.chunks`), as every frame does without a way.

A later transport, device to device, is one more file with these two classes and a line in `WAYS`.
"""

from __future__ import annotations

from typing import Protocol

from zpptool.wire.message.framing import Buffer


class SideChannelSender(Protocol):
    """The sender's end, made when it welcomes a receiver that knows the way."""

    @property
    def offer(self) -> str:
        """What the receiver needs to find the other end, as it travels in the welcome."""

    @property
    def ready(self) -> bool:
        """Whether the receiver has found its end."""

    def put(self, frame: Buffer) -> int | None:
        """Put a frame where the other side can get it; the ticket for it (64 bits), None when that cannot be now."""

    def close(self) -> None:
        """Nothing more will be put. What was put can still be got."""


class SideChannelReceiver(Protocol):
    """The receiver's end, made from the sender's offer."""

    def get(self, ticket: int, nbytes: int) -> memoryview:
        """The frame behind a ticket, writable; its memory goes back to the sender when no view of it is left.

        Raises:
            WireError: there is no such frame (now).
        """

    def close(self) -> None:
        """Nothing more will be got. Views that were handed out stay whole."""
