# SPDX-License-Identifier: Apache-2.0
"""Which accesses to memory happen before which others: vector clocks, and the pairs that nothing orders.

Everything that runs in order is an actor: the host, and each stream of a device. All threads of the host are one actor,
since they hand work to each other in ways that are not recorded; what is proven is the order between host and streams,
and among streams.
"""

from __future__ import annotations

import threading
from itertools import combinations
from typing import NamedTuple

import torch

HOST = "host"

Clock = dict[str, int]
"""For each actor, how much of its work is known to be done."""


class Access(NamedTuple):
    """One read or write of memory.

    Attributes:
        actor: who does it.
        clock: what has happened before it, itself included.
        begin, end: the addresses.
        writes: whether the memory is changed.
        what: the operation, for messages.
    """

    actor: str
    clock: Clock
    begin: int
    end: int
    writes: bool
    what: str

    def happens_before(self, other: Access) -> bool:
        """Whether the other begins when this one has ended, in whatever time either takes."""
        return other.clock.get(self.actor, 0) >= self.clock[self.actor]

    def conflicts_with(self, other: Access) -> bool:
        """Whether the order of the two matters."""
        return (self.writes or other.writes) and self.begin < other.end and other.begin < self.end


class RaceLog:
    """The clocks of all actors, and all accesses. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clocks: dict[str, Clock] = {}
        self._accesses: list[Access] = []

    def now(self, actor: str) -> Clock:
        """What has happened before the present moment of an actor."""
        with self._lock:
            return dict(self._clock(actor))

    def learn(self, actor: str, clock: Clock) -> None:
        """From now on all of that clock has happened before what the actor does."""
        with self._lock:
            own = self._clock(actor)
            for other, count in clock.items():
                own[other] = max(own.get(other, 0), count)

    def access(
        self, actor: str, what: str, *, reads: tuple[torch.Tensor, ...], writes: tuple[torch.Tensor, ...]
    ) -> None:
        """Record accesses that an actor makes now. Tensors are contiguous."""
        with self._lock:
            clock = self._clock(actor)
            clock[actor] = clock.get(actor, 0) + 1
            for tensors, changed in ((reads, False), (writes, True)):
                for tensor in tensors:
                    begin = tensor.data_ptr()
                    self._accesses.append(Access(actor, dict(clock), begin, begin + tensor.nbytes, changed, what))

    def races(self) -> list[str]:
        """The pairs of accesses to the same memory that nothing orders, in words."""
        with self._lock:
            pairs = list(combinations(self._accesses, 2))
        return [
            f"{one.what} ({one.actor}) and {two.what} ({two.actor})"
            for one, two in pairs
            if one.conflicts_with(two) and not one.happens_before(two) and not two.happens_before(one)
        ]

    def _clock(self, actor: str) -> Clock:
        return self._clocks.setdefault(actor, {})
