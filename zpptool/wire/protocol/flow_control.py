# SPDX-License-Identifier: Apache-2.0
"""How much a sender may have in flight: the rule that bounds memory on both sides, independent of sockets.

The invariant: the messages that were sent and not acknowledged are at most `Window.messages`, and have at most
`Window.nbytes` bytes together, or else a quarter of that and one message more. That holds wherever they are: in this
process, in the system's buffers, or in the other process.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that may be in flight on a link: a number of messages, a number of bytes."""

    messages: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] = 32
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] = 256 << 20

    def within(self, other: Window) -> Window:
        """The smaller of both, bound by bound: neither side has to exceed its own window."""
        return Window(max(1, min(self.messages, other.messages)), max(1, min(self.nbytes, other.nbytes)))


class Credit:
    """The sender's account of one session.

    Attributes:
        sent: messages sent, which is also the number of the next one.
        taken: messages that the receiver has acknowledged.
        pending_bytes: bytes of those sent and not acknowledged.
    """

    __slots__ = ("_sizes", "_window", "pending_bytes", "sent", "taken")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._sizes: deque[int] = deque()
        self.sent = 0
        self.taken = 0
        self.pending_bytes = 0

    def allows(self, nbytes: int) -> bool:
        """Whether a message of that size may be sent now."""
        if len(self._sizes) >= self._window.messages:
            return False
        # A receiver may leave a quarter unacknowledged: without that allowance one large message could wait forever.
        return self.pending_bytes + nbytes <= self._window.nbytes or self.pending_bytes <= self._window.nbytes // 4

    def spend(self, nbytes: int) -> None:
        """Account for a message of that size that was sent."""
        self._sizes.append(nbytes)
        self.pending_bytes += nbytes
        self.sent += 1

    def receive(self, taken: int) -> bool:
        """Account for an acknowledgement of the first `taken` messages; False when fewer were ever sent."""
        if taken > self.sent:
            return False
        while self.taken < taken:
            self.pending_bytes -= self._sizes.popleft()
            self.taken += 1
        return True


class AcknowledgementSchedule:
    """The receiver's account of one session: when to acknowledge what was taken.

    That is after a quarter of the window, in messages or in bytes, so that a sender that is not stalled never waits.

    Args:
        window: of the session.

    Attributes:
        taken: messages that were handed to the receiver's owner.
    """

    __slots__ = ("_acknowledged", "_bytes", "_messages", "_nbytes", "taken")

    def __init__(self, window: Window) -> None:
        self._messages = max(1, window.messages // 4)
        self._bytes = max(1, window.nbytes // 4)
        self._acknowledged = 0
        self._nbytes = 0
        self.taken = 0

    def take(self, nbytes: int) -> None:
        """Account for a message of that size that was handed to the owner."""
        self.taken += 1
        self._nbytes += nbytes

    @property
    def due(self) -> bool:
        """Whether an acknowledgement should be sent now."""
        return self.taken - self._acknowledged >= self._messages or self._nbytes >= self._bytes

    @property
    def pending(self) -> bool:
        """Whether anything is not acknowledged yet."""
        return self.taken > self._acknowledged

    def sent(self) -> None:
        """Account for an acknowledgement of everything taken so far."""
        self._acknowledged = self.taken
        self._nbytes = 0
