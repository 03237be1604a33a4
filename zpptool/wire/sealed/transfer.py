# SPDX-License-Identifier: Apache-2.0
"""A frame on its way through the lanes: how much of it is left."""

from __future__ import annotations

import threading

import zmq


class Transfer:
    """Counts the bytes of one frame that are still to be sent, or to arrive. Any thread may use it.

    Args:
        view: the frame's memory, as bytes.

    Attributes:
        view: that memory; None when nothing is left to do with it.
    """

    def __init__(self, view: memoryview) -> None:
        self.view: memoryview | None = view
        self._left = view.nbytes
        self._lock = threading.Lock()
        self._finished = threading.Event()

    @property
    def complete(self) -> bool:
        """Whether every byte was sent, or has arrived."""
        return self._left <= 0

    @property
    def done(self) -> bool:
        """Whether nothing is left, or the channel has ended."""
        return self._finished.is_set()

    def wait(self, timeout: float = -1) -> None:
        """Return when nothing is left.

        Args:
            timeout: in seconds; negative for no limit.

        Raises:
            zmq.NotDone: it is not done in time, as by `zmq.MessageTracker`, beside which it is waited for.
        """
        if not self._finished.wait(timeout if timeout >= 0 else None):
            raise zmq.NotDone

    def account(self, nbytes: int) -> bool:
        """Count bytes that were sent or have arrived; whether they were the last."""
        with self._lock:
            self._left -= nbytes
            if self._left > 0:
                return False
        self.end()
        return True

    def end(self) -> None:
        """Do nothing more with the memory."""
        self.view = None
        self._finished.set()
