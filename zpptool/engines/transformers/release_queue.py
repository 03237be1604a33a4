# SPDX-License-Identifier: Apache-2.0
"""Has the stages forget the sequences that have ended, from a thread of its own."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import NamedTuple

from zpptool.engines.transformers.calls import FREE, encode_number
from zpptool.ring.head.node import HeadNode

CLOSE_S = 2.0
"""How long, in seconds, `close` waits for messages that stage 0 does not accept."""


class SequenceNumber(NamedTuple):
    """What a sequence is called in one epoch.

    Attributes:
        epoch: the epoch in which it is computed.
        number: its number in the stages.
    """

    epoch: int
    number: int


class ReleaseQueue:
    """Sequences that have ended, in the order in which they did.

    A sequence may end in any thread, also in a destructor that the garbage collector runs while that thread is inside a
    link. So nothing but this object's thread uses the link, and `put` takes no lock that Python code could hold.

    Args:
        node: the head's place in the ring.
    """

    def __init__(self, node: HeadNode) -> None:
        self._node = node
        self._ended: SimpleQueue[SequenceNumber | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="release-sequences", daemon=True)
        self._thread.start()

    def put(self, sequence: SequenceNumber) -> None:
        """Have the stages forget a sequence. Returns at once; every step of it has been sent."""
        self._ended.put(sequence)

    def close(self) -> None:
        """End the thread after what is queued, within `CLOSE_S`."""
        self._ended.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            # The answer is not awaited, and a failure needs no action: a ring that breaks forgets all sequences.
            self._node.call(FREE, encode_number(ended.number), from_all=False, epoch=ended.epoch)
