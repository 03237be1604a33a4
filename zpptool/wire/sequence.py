# SPDX-License-Identifier: Apache-2.0
"""Whether a message is the one that was due on a link: the rule, apart from sockets.

A sender's link draws a random session number and counts its messages from 0. The invariant: a receiver accepts the
messages of one session without gap or repeat; a session it has not seen takes over (the sender was restarted) and
counts from 0 again; a session that was replaced may not come back (then two senders are at work).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_REMEMBERED = 16


class SequenceFault(NamedTuple):
    """What came instead of what was due."""

    expected: int
    got: int
    text: str


class SequenceCheck:
    """The state of one receiving link.

    Args:
        late_join: the sender may already be counting when this end meets its session: this end was restarted, and
            what was sent before is known to be lost.
    """

    def __init__(self, *, late_join: bool = False) -> None:
        self._late_join = late_join
        self._session: int | None = None
        self._replaced: deque[int] = deque(maxlen=_REMEMBERED)
        self._due = 0

    @property
    def due(self) -> int:
        """The next sequence number, which is also how many messages the present sender has sent."""
        return self._due

    def accept(self, session: int, sequence: int) -> SequenceFault | None:
        """None when this message was due. After a fault the count goes on behind the highest number seen."""
        if session in self._replaced:
            return SequenceFault(self._due, sequence, "it comes from a sender that another one has replaced")
        if session != self._session:
            if self._session is not None:
                self._replaced.append(self._session)
            self._session = session
            self._due = sequence if self._late_join else 0
        expected = self._due
        if sequence < expected:
            return SequenceFault(expected, sequence, f"message {sequence} was repeated")
        self._due = sequence + 1
        if sequence > expected:
            return SequenceFault(expected, sequence, f"{sequence - expected} messages were lost or went elsewhere")
        return None
