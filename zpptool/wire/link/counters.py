# SPDX-License-Identifier: Apache-2.0
"""What a sending link has done since it was opened, as counters; written in the link's turn, read at any time."""

from __future__ import annotations

from bisect import bisect_left

ROUND_TRIP_BOUNDS_S = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the histogram of round trips: from a loopback's to a bad intercontinental one's."""


class LinkCounters:
    """Counters of one link, over all its sessions.

    Attributes:
        messages_sent, bytes_sent: what ZeroMQ has accepted.
        messages_taken, bytes_taken: the part of these that the receiver has acknowledged.
        sessions: how often a peer was welcomed.
        knocks: how often a receiver was refused only because another one was connected.
        wait_s: time that senders have waited for a peer, or for room in its window.
        send_s: time spent in handing messages to ZeroMQ.
        rtt_s: the last round trip of a ping, None before the first.
        rtt_counts: round trips by the bounds of `ROUND_TRIP_BOUNDS_S`, and one more for longer ones.
        rtt_sum_s: the sum of all round trips.
    """

    __slots__ = (
        "bytes_sent", "bytes_taken", "knocks", "messages_sent", "messages_taken", "rtt_counts", "rtt_s",
        "rtt_sum_s", "send_s", "sessions", "wait_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.messages_sent = self.bytes_sent = 0
        self.messages_taken = self.bytes_taken = 0
        self.sessions = self.knocks = 0
        self.wait_s = self.send_s = self.rtt_sum_s = 0.0
        self.rtt_s: float | None = None
        self.rtt_counts = [0] * (len(ROUND_TRIP_BOUNDS_S) + 1)

    def sent(self, nbytes: int, seconds: float) -> None:
        """Count a message of that size, which ZeroMQ accepted within that time."""
        self.messages_sent += 1
        self.bytes_sent += nbytes
        self.send_s += seconds

    def taken(self, messages: int, nbytes: int) -> None:
        """Count messages that the receiver has acknowledged."""
        self.messages_taken += messages
        self.bytes_taken += nbytes

    def round_trip(self, seconds: float) -> None:
        """Count the round trip of one ping."""
        self.rtt_s = seconds
        self.rtt_sum_s += seconds
        self.rtt_counts[bisect_left(ROUND_TRIP_BOUNDS_S, seconds)] += 1
