# SPDX-License-Identifier: Apache-2.0
"""A wait for file descriptors that another thread or a signal handler can end."""

from __future__ import annotations

import select
import socket
from contextlib import suppress


class Waiter:
    """Waits until a watched descriptor is readable, a deadline passes, or `wake` is called.

    One thread waits at a time; any thread, and any signal handler, may call `wake`.

    Args:
        descriptor: the file descriptor to watch from the start.

    Attributes:
        watched: the poll object; other descriptors may be registered with it.
    """

    def __init__(self, descriptor: int) -> None:
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._wake_receiver.setblocking(False)
        self._wake_descriptor = self._wake_receiver.fileno()
        self.watched = select.poll()
        self.watched.register(descriptor, select.POLLIN)
        self.watched.register(self._wake_descriptor, select.POLLIN)

    def wait(self, timeout_ms: int) -> None:
        """Return when a descriptor is readable, `wake` was called, or the timeout has passed."""
        for descriptor, _ in self.watched.poll(timeout_ms):
            if descriptor == self._wake_descriptor:
                self._wake_receiver.recv(4096)

    def wake(self) -> None:
        """End the current wait, or the next one if no thread waits now. Never blocks."""
        with suppress(OSError):  # the buffer is full, or another thread has just closed it
            self._wake_sender.send(b"\0")

    def close(self) -> None:
        """Release the descriptors of this object."""
        self._wake_sender.close()
        self._wake_receiver.close()
