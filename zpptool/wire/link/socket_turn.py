# SPDX-License-Identifier: Apache-2.0
"""Exclusive use of a link's socket: one thread at a time, and tasks that other threads leave for that thread.

The invariant: a task that was posted runs exactly once unless the link is closed first, either in the thread that has
the socket before it releases it, or at once when no thread has it. `post` and `try_run` never block.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from zpptool.deadline import Deadline
from zpptool.wire.link.link_faults import LinkFaults
from zpptool.wire.link.waiter import Waiter


class SocketUser(Protocol):
    """What the turn needs of the link whose socket it guards."""

    @property
    def faults(self) -> LinkFaults:
        """The errors of the link as it is now."""

    def _read_link_messages(self) -> None:
        """Process the link messages that are in the socket."""

    def _dispose(self) -> None:
        """Close the socket."""


class SocketTurn:
    """The right to use one socket. A thread calls `enter` before it uses the socket and `leave` afterwards.

    Args:
        user: the link.
        waiter: waits for the socket.
        linger_s: how long a closing socket goes on sending.

    Attributes:
        torn: a message was sent or read in part. Set it around the calls that must not be interrupted: `leave` then
            closes the link, since it is unknown what its peer has received.
        closing: `close` was called; the link closes as soon as its socket is free.
        closed: the socket is closed.
        linger_s: how long the socket goes on sending when it is closed.
    """

    def __init__(self, user: SocketUser, waiter: Waiter, linger_s: float) -> None:
        self._user = user
        self._waiter = waiter
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._tasks: deque[Callable[[], object]] = deque()
        self._pid = os.getpid()
        self._inherited = False
        self.torn = False
        self.closing = False
        self.closed = False
        self.linger_s = linger_s

    @property
    def has_tasks(self) -> bool:
        """Whether tasks are waiting for the thread that has the socket."""
        return bool(self._tasks)

    def disown(self) -> None:
        """Refuse all use from now on: this process is a fork of the one that opened the link."""
        self._inherited = True

    def enter(self, deadline: Deadline) -> None:
        """Acquire the socket for this thread.

        Raises:
            LinkTimeout: another thread did not release it before the deadline.
            LinkError: the link is closed, belongs to the parent process, or is in use by the code that the calling
                signal handler has interrupted.
        """
        if self._inherited:
            raise self._user.faults.misused(f"belongs to process {self._pid}", "Open links after the fork.")
        caller = threading.get_ident()
        if self._holder == caller:
            raise self._user.faults.misused("is in use by the code that this signal handler interrupted")
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise self._user.faults.timed_out(deadline, "end another thread's call")
        self._holder = caller
        if self.closing:
            self.leave()
            raise self._user.faults.misused("is closed")

    def leave(self) -> None:
        """Release the socket, or close it if `close` was called meanwhile or a message was torn by an interrupt."""
        if self.torn:
            self.linger_s = 0.0
            self.closing = True
        if self._tasks or self.closing:
            self.run_tasks()
            if self.closing:
                self._user._dispose()
        else:
            self._user._read_link_messages()
        self._holder = None
        self._lock.release()
        if self._tasks and not self.closed:
            self._run_if_free()

    def wait(self, deadline: Deadline) -> None:
        """Return when a message may have arrived, a task was posted, or the deadline has passed.

        Call it with the socket acquired, when nothing was readable and the socket was not used since: libzmq's
        descriptor signals a change once, to the next call on the socket, whatever that is. (Polling it directly takes
        half as long as `zmq_poll`.)

        Raises:
            LinkError: the link was closed meanwhile.
        """
        self._waiter.wait(deadline.remaining_ms())
        if self.closing:
            raise self._user.faults.misused("was closed while waiting")
        self.run_tasks()

    def run_tasks(self) -> None:
        """Run the posted tasks and process the link messages; the caller has the socket."""
        if self.torn or self.closed:
            return
        while self._tasks:
            self._tasks.popleft()()
        self._user._read_link_messages()

    def post(self, task: Callable[[], object]) -> None:
        """Have `task` run by the thread that has the socket, or here and now if none has it. Never blocks."""
        self._tasks.append(task)
        self._waiter.wake()
        self._run_if_free()

    def try_run(self) -> bool:
        """Run the tasks and process the link messages; False if another thread has the socket, which will do so."""
        if not self._lock.acquire(blocking=False):
            return False
        self._holder = threading.get_ident()
        self.leave()
        return True

    def close(self, linger_s: float) -> None:
        """Close the socket, or have it closed by the call that this one has interrupted. Closing twice is allowed.

        Does nothing in a forked child: the link belongs to its parent.

        Args:
            linger_s: how long to go on sending what was accepted.
        """
        if self.closed or self._inherited:
            return
        self.linger_s = linger_s
        self.closing = True
        self._waiter.wake()
        if self._holder == threading.get_ident():
            return
        with self._lock:
            self._user._dispose()

    def _run_if_free(self) -> None:
        while self._tasks and not self.closed and self.try_run():
            pass
