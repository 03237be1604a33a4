# SPDX-License-Identifier: Apache-2.0
"""Whether a message is the one that was due on a link: the rule, apart from sockets.

A sender draws a random number for each session that it welcomes a receiver to, and counts its messages from 0. The
invariant: a receiver accepts the messages of that one session without gap, repeat or change of order.
"""

from __future__ import annotations

from typing import NamedTuple

from zpptool.wire.link_errors import LinkError
from zpptool.wire.message.framing import Message


class SequenceFault(NamedTuple):
    """What came instead of what was due."""

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
        """None when this message was due. After a fault the count goes on behind the highest number seen."""
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
        got: the one that came.
        received: the message that showed it; the caller decides whether it is still of use. The link goes on after
            it, so one loss is reported once.
    """

    expected: int
    got: int
    received: Message
