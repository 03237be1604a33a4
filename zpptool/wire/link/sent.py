# SPDX-License-Identifier: Apache-2.0
"""A message that was accepted for sending: whether its memory is free again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import zmq

from zpptool.deadline import Deadline
from zpptool.wire.link.link_faults import LinkFaults


class FaultSource(Protocol):
    """Anything that makes the errors of a link."""

    @property
    def faults(self) -> LinkFaults:
        """The errors of the link as it is now."""


class Tracker(Protocol):
    """Reports when memory that is being sent may be changed; ZeroMQ's, or a transfer of the sealed channel."""

    @property
    def done(self) -> bool:
        """Whether it may be changed."""

    def wait(self, timeout: float = -1) -> None:
        """Return when it may be changed; raises `zmq.NotDone` after `timeout` seconds, never if that is negative."""


class Sent:
    """A message that was accepted for sending.

    Args:
        link: makes the error of a wait that timed out.
        sequence: the message's number.
        trackers: of the parts that are sent from the caller's memory.
    """

    __slots__ = ("_link", "_trackers", "sequence")

    def __init__(self, link: FaultSource, sequence: int, trackers: Sequence[Tracker]) -> None:
        self._link = link
        self._trackers = trackers
        self.sequence = sequence

    @property
    def done(self) -> bool:
        """Whether the memory given to `send` may be changed. That does not mean that the peer has read it."""
        return all(tracker.done for tracker in self._trackers)

    def wait(self, timeout_s: float) -> None:
        """Return when the memory given to `send` may be changed.

        Raises:
            LinkTimeout: it is still being sent when the deadline passes; it may not be changed yet.
        """
        if not self._trackers:
            return
        deadline = Deadline(timeout_s)
        for tracker in self._trackers:
            try:
                tracker.wait(deadline.remaining_s())
            except zmq.NotDone:
                awaited = f"take the bytes of message {self.sequence}"
                raise self._link.faults.timed_out(deadline, awaited) from None
