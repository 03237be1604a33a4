# SPDX-License-Identifier: Apache-2.0
"""What both ends of a link have in common: who may use the socket, how to wait for it, how to end it.

The invariant: one thread at a time touches the socket, every wait ends at its deadline or when the link is closed, and
`close` returns within its linger whatever the peer does and from wherever it is called: another thread that waits in
the link is woken, and a signal handler that interrupted a call leaves the closing to that call.
"""

from __future__ import annotations

import atexit
import os
import socket as net
import threading
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import zmq
import zmq.utils.garbage  # before the atexit handler below, which has to run before this module's own

from zpptool.errors import ZppError
from zpptool.wire.deadline import Deadline
from zpptool.wire.errors import LinkError, LinkTimeout, WireError, place_name
from zpptool.wire.messages import PREAMBLE_BYTES, Limits
from zpptool.wire.peers import PeerWatch
from zpptool.wire.sockets import LINGER_S, Context, attach, make_socket

HIGH_WATER_MARK = 32
"""Messages that may wait on each side of a link: a few steps in flight, and the control messages between them."""


_process = os.getpid()


def _remember_process() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_remember_process)

_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


@atexit.register
def _close_forgotten() -> None:
    """Close what the program left open before pyzmq, at exit, forgets the memory that libzmq may still be sending."""
    for link in list(_open):
        link.close()


class Endpoint:
    """One end of a hop. Its context, socket and I/O thread are its own, so that closing it flushes just this link."""

    def __init__(
        self,
        kind: int,
        address: str,
        *,
        stage: int,
        peer: str,
        bind: bool,
        high_water_mark: int,
        limits: Limits | None,
        context: Context | None,
    ) -> None:
        self.stage = stage
        self.peer = peer
        self.limits = limits or Limits()
        self.endpoint = address
        self._pid = _process
        self._turn = threading.Lock()
        self._holder: int | None = None
        self._closing = False
        self._closed = False
        self._torn = False
        self._linger_s = LINGER_S
        self._own_context: Context | None = None
        if context is None:
            context = self._own_context = zmq.Context()
        self._socket = make_socket(
            context,
            kind,
            high_water_mark=high_water_mark,
            max_frame_bytes=max(self.limits.max_frame_bytes, PREAMBLE_BYTES + self.limits.max_header_bytes),
        )
        self._peers = PeerWatch(self._socket)
        self._wake, self._alarm = net.socketpair()
        self._wake.setblocking(False)
        event = zmq.POLLOUT if kind == zmq.PUSH else zmq.POLLIN
        # Plain integers, as everywhere on the way of a message: zmq's flags are enums, whose arithmetic costs more than
        # the calls it is for.
        self._watched: list[tuple[Any, int]] = [(self._socket, int(event)), (self._alarm.fileno(), int(zmq.POLLIN))]
        _open.add(self)
        try:
            self.endpoint = attach(self._socket, address, bind=bind)
        except ZppError:
            self.close(0)
            raise

    @property
    def peers(self) -> int:
        """How many peers are connected now."""
        return self._peers.count

    def close(self, linger_s: float = LINGER_S) -> None:
        """End the link. What was accepted goes on being sent for `linger_s` at most. Closing twice is no fault.

        In a forked child it does nothing: the link belongs to the parent.
        """
        if self._closed or _process != self._pid:
            return
        self._linger_s = linger_s
        self._closing = True
        self._peers.release()
        with suppress(OSError):  # full, or closed by another thread just now
            self._wake.send(b"\0")
        if self._holder == threading.get_ident():
            return
        with self._turn:
            self._dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def timed_out(self, deadline: Deadline, awaited: str) -> LinkTimeout:
        """The error for a wait that ended: who waited how long for what, and whether the peer was there."""
        who = place_name(self.stage).capitalize()
        where = f"{who} waited {deadline.timeout_s:g} s for {self.peer} ({self.endpoint}) to {awaited}"
        if self.peers:
            state, hint = "it is connected", f"See the log of {self.peer}: it is busy, stopped or hung."
        else:
            state, hint = "it is not connected", f"Is {self.peer} running, and does the address lead to it?"
        return LinkTimeout(f"{where}; {state}.", hint, stage=self.stage, peer=self.peer, endpoint=self.endpoint)

    def fault(self, told: str, hint: str | None = None) -> LinkError:
        """An error of this link: `told` says what happened."""
        return LinkError(
            f"{place_name(self.stage).capitalize()}: {told} ({self.endpoint}).",
            hint,
            stage=self.stage,
            peer=self.peer,
            endpoint=self.endpoint,
        )

    def refusal(self, error: WireError) -> WireError:
        """A received message's fault, told with this link's names."""
        return error.at(stage=self.stage, peer=self.peer, endpoint=self.endpoint)

    def _enter(self, deadline: Deadline) -> None:
        """Take the socket for this thread; `_leave` gives it back."""
        if _process != self._pid:
            raise self.fault(f"the link to {self.peer} belongs to process {self._pid}", "Open links after the fork.")
        caller = threading.get_ident()
        if self._holder == caller:
            raise self.fault(f"the link to {self.peer} is in use by the code that this signal handler interrupted")
        if not self._turn.acquire(timeout=deadline.remaining_s()):
            raise self.timed_out(deadline, "end another thread's call")
        self._holder = caller
        if self._closing:
            self._leave()
            raise self.fault(f"the link to {self.peer} is closed")

    def _leave(self) -> None:
        """Give the socket back, or close it where that was asked for or an interrupt tore a message."""
        if self._torn:
            self._linger_s = 0.0
            self._closing = True
        if self._closing:
            self._dispose()
        self._holder = None
        self._turn.release()

    def _ready(self) -> bool:
        """Whether the socket can send (receive) now. Asking makes libzmq take note of peers that came or went."""
        return bool(zmq.zmq_poll(self._watched[:1], 0))

    def _wait(self, deadline: Deadline) -> None:
        """Return when the socket may be ready, or the deadline has passed.

        Raises:
            LinkError: the link was closed meanwhile.
        """
        zmq.zmq_poll(self._watched, deadline.remaining_ms())
        if self._closing:
            raise self.fault(f"the link to {self.peer} was closed while waiting")

    def _dispose(self) -> None:
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        self._peers.stop(self._socket)
        self._socket.close(linger=int(self._linger_s * 1000))
        if self._own_context:
            self._own_context.term()  # returns when all is sent or the linger has passed
        self._wake.close()
        self._alarm.close()
