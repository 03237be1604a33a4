# SPDX-License-Identifier: Apache-2.0
"""Whether a message is the one that was due on a link: the rule, independent of sockets.

A sender draws a random number for each session that it welcomes a receiver to, and counts its messages from 0. The
invariant: a receiver accepts the messages of that one session without gap, repeat or change of order.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

from zpptool.wire.link_errors import LinkError, LinkFacts
from zpptool.wire.message.framing import Message


class SequenceFault(NamedTuple):
    """A message that was not due: the number that was, the number that arrived, and why as a clause."""

    expected: int
    got: int
    text: str


class SequenceCheck:
    """The state of one session at its receiver.

    Attributes:
        session: its number.
        due: the next sequence number, which is also how many messages were received.
    """

    __slots__ = ("due", "session")

    def __init__(self, session: int) -> None:
        self.session = session
        self.due = 0

    def accept(self, session: int, sequence: int) -> SequenceFault | None:
        """None when this message was due. After a fault the count continues after the highest number seen."""
        expected = self.due
        if session != self.session:
            return SequenceFault(expected, sequence, "it belongs to another session")
        if sequence == expected:
            self.due = sequence + 1
            return None
        if sequence < expected:
            return SequenceFault(expected, sequence, f"message {sequence} was repeated, or came too late")
        self.due = sequence + 1
        return SequenceFault(expected, sequence, f"{sequence - expected} messages were lost on the way")


class SequenceError(LinkError):
    """Messages were lost, repeated, or belong to another session.

    Attributes:
        expected: the sequence number that was due.
        got: the one that arrived.
        received: the message that revealed it; the caller decides whether it is still of use. The link continues after
            it, so one loss is reported once.
    """

    def __init__(self, message: str, *, expected: int, got: int, received: Message, **facts: Unpack[LinkFacts]) -> None:
        super().__init__(message, **facts)
        self.expected = expected
        self.got = got
        self.received = received
