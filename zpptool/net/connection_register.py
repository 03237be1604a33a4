# SPDX-License-Identifier: Apache-2.0
"""The connections of one server, and which of them gives way to a new one when there are too many.

A connection whose request has not arrived completely does nothing yet, so it gives way, the oldest first: strangers who
connect and stay silent displace each other, never a request that is being answered, and a client that sends its request
at once is always admitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol


class RegisteredConnection(Protocol):
    """A connection as the register sees it.

    Attributes:
        address: of the client, without its port.
    """

    address: str

    def give_way(self) -> None:
        """Close at once."""


class ConnectionRegister:
    """All open connections of a server. Used on the event loop's thread only.

    Args:
        connections: the most at one time.
        per_address: the most of one client address.
    """

    def __init__(self, connections: int, per_address: int) -> None:
        self._most, self._most_per_address = connections, per_address
        self._open: set[RegisteredConnection] = set()
        self._per_address: Counter[str] = Counter()
        self._incomplete: dict[RegisteredConnection, None] = {}  # in the order in which their waiting began

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: RegisteredConnection) -> bool:
        """Register a new connection, closing others if there are too many; False if it must be closed itself."""
        address = connection.address
        if self._per_address[address] >= self._most_per_address:
            same = (each for each in self._incomplete if each.address == address)
            if not self._displace(same):
                return False
        if len(self._open) >= self._most and not self._displace(iter(self._incomplete)):
            return False
        self._open.add(connection)
        self._per_address[address] += 1
        self._incomplete[connection] = None
        return True

    def remove(self, connection: RegisteredConnection) -> None:
        """Forget a connection that is closed; harmless for one that is not registered."""
        if connection in self._open:
            self._open.discard(connection)
            self._incomplete.pop(connection, None)
            self._per_address -= Counter({connection.address: 1})

    def request_complete(self, connection: RegisteredConnection) -> None:
        """Note that a request has arrived completely: its connection does not give way until it is answered."""
        self._incomplete.pop(connection, None)

    def request_answered(self, connection: RegisteredConnection) -> None:
        """Note that a connection is idle again."""
        if connection in self._open:
            self._incomplete[connection] = None

    def _displace(self, candidates: Iterator[RegisteredConnection]) -> bool:
        """Close the first candidate; False if there is none."""
        oldest = next(candidates, None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.give_way()
        return True
