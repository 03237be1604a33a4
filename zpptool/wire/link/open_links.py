# SPDX-License-Identifier: Apache-2.0
"""The open links of this process, so that they are closed at exit and left alone in a forked child."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

import zmq.utils.garbage  # noqa: F401  registers its exit handler first, so that the one below runs before it


class OpenLink(Protocol):
    """What the registry needs of a link."""

    def close(self) -> None:
        """Close the link."""

    def disown(self) -> None:
        """Refuse all use: the link belongs to the parent process."""


class OpenLinks:
    """The open links of one process, held weakly.

    There is one instance a process, because two hooks belong to the process as a whole. At exit pyzmq drops the memory
    that libzmq may still be sending, which crashes the process unless all sockets are closed before. After a fork the
    child has the parent's sockets, and must not use them; marking the links once costs less than asking for the process
    id with each message.
    """

    def __init__(self) -> None:
        self._links: weakref.WeakSet[OpenLink] = weakref.WeakSet()
        atexit.register(self.close_all)
        os.register_at_fork(after_in_child=self.disown_all)

    def add(self, link: OpenLink) -> None:
        """Register a link that has opened its socket."""
        self._links.add(link)

    def discard(self, link: OpenLink) -> None:
        """Remove a link that is closed."""
        self._links.discard(link)

    def close_all(self) -> None:
        """Close what the program has left open."""
        for link in list(self._links):
            link.close()

    def disown_all(self) -> None:
        """Mark all links as the parent's."""
        for link in list(self._links):
            link.disown()


OPEN_LINKS = OpenLinks()
