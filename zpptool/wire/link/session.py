# SPDX-License-Identifier: Apache-2.0
"""What a sending link remembers of whom it met and what it handed over.

The invariant: a session belongs to one guest and never changes; another peer, or another epoch, is another session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import zmq

from zpptool.deadline import Deadline
from zpptool.wire.link.endpoint import Endpoint
from zpptool.wire.link.outbound import Outbound
from zpptool.wire.protocol.link_messages import Hello


class Sent:
    """A message that was accepted for sending."""

    __slots__ = ("_link", "_trackers", "sequence")

    def __init__(self, link: Endpoint, sequence: int, trackers: Sequence[zmq.MessageTracker]) -> None:
        self._link = link
        self._trackers = trackers
        self.sequence = sequence

    @property
    def done(self) -> bool:
        """Whether the memory handed to `send` may be written again. It says nothing about the peer having read it."""
        return all(tracker.done for tracker in self._trackers)

    def wait(self, timeout_s: float) -> None:
        """Return when the memory handed to `send` may be written again.

        Raises:
            LinkTimeout: it is still being sent when the deadline passes; it may not be written yet.
        """
        if not self._trackers:
            return
        deadline = Deadline(timeout_s)
        for tracker in self._trackers:
            try:
                tracker.wait(deadline.remaining_s())
            except zmq.NotDone:
                raise self._link.timed_out(deadline, f"take the bytes of message {self.sequence}") from None


class Guest(NamedTuple):
    """Somebody who has greeted: his address in the socket, his connection's file descriptor, and what he said."""

    identity: bytes
    connection: int
    hello: Hello


class Session(NamedTuple):
    """A guest who was welcomed, the number that the messages to him bear, and the ways that they go."""

    guest: Guest
    number: int
    outbound: Outbound
