# SPDX-License-Identifier: Apache-2.0
"""How much a sender may have under way: the rule that bounds memory on both sides, apart from sockets.

The invariant: the messages that were sent and that the receiver has not said to have taken are at most
`Window.messages`, and have at most `Window.nbytes` bytes together, or else a quarter of that and one message more. That
holds wherever they lie: in this process, in the system's buffers, or in the other one.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be under way on a link: so many messages, so many bytes."""

    messages: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] = 32
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] = 256 << 20

    def within(self, other: Window) -> Window:
        """The smaller of both, as neither side may be asked for more than it said."""
        return Window(max(1, min(self.messages, other.messages)), max(1, min(self.nbytes, other.nbytes)))


class Credit:
    """The sender's account of one session.

    Attributes:
        sent: messages sent, which is the number of the next one.
        taken: messages that the receiver has taken.
        pending_bytes: bytes of those sent and not taken.
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
        # The quarter is what a receiver may have taken without a word: else one large message could wait for ever.
        return self.pending_bytes + nbytes <= self._window.nbytes or self.pending_bytes <= self._window.nbytes // 4

    def spend(self, nbytes: int) -> None:
        """A message of that size was sent."""
        self._sizes.append(nbytes)
        self.pending_bytes += nbytes
        self.sent += 1

    def receive(self, taken: int) -> bool:
        """The receiver says how many it has taken in all; False when that cannot be: never so many were sent."""
        if taken > self.sent:
            return False
        while self.taken < taken:
            self.pending_bytes -= self._sizes.popleft()
            self.taken += 1
        return True


class Debt:
    """The receiver's account of one session: when to tell the sender what was taken.

    It tells after a quarter of the window, in messages or in bytes, so that a sender that is not stalled never waits.
    """

    __slots__ = ("_bytes", "_messages", "_nbytes", "_told", "taken")

    def __init__(self, window: Window) -> None:
        self._messages = max(1, window.messages // 4)
        self._bytes = max(1, window.nbytes // 4)
        self._told = 0
        self._nbytes = 0
        self.taken = 0

    def take(self, nbytes: int) -> None:
        """A message of that size was handed on."""
        self.taken += 1
        self._nbytes += nbytes

    @property
    def due(self) -> bool:
        """Whether the sender should be told now."""
        return self.taken - self._told >= self._messages or self._nbytes >= self._bytes

    @property
    def untold(self) -> bool:
        """Whether the sender does not know of all that was taken."""
        return self.taken > self._told

    def told(self) -> None:
        """The sender was told."""
        self._told = self.taken
        self._nbytes = 0
