# SPDX-License-Identifier: Apache-2.0
"""What both ends of a link have in common: who may use the socket, how to wait for it, how to end it.

The invariant: one thread at a time touches the socket and what the link remembers, every wait ends at its deadline or
when the link is closed, and `close` returns within its linger whatever the peer does and from wherever it is called:
another thread that waits in the link is woken, and a signal handler that interrupted a call leaves the closing to that
call. What others want done with the socket they leave as a chore: whoever has the socket does it before giving it back.
"""

from __future__ import annotations

import atexit
import os
import select
import socket as net
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq
import zmq.utils.garbage  # before the atexit handler below, which has to run before this module's own

from zpptool.deadline import Deadline
from zpptool.errors import ExitCode, ZppError
from zpptool.places import HEAD, place_name
from zpptool.wire.link.fragments import most_chunks
from zpptool.wire.link.handshake_failures import Failure, Handshakes, refusal_words, remote_address, trouble_words
from zpptool.wire.link.monitor import LinkMonitor
from zpptool.wire.link.rate_limited_log import RateLimitedLog
from zpptool.wire.link_errors import LinkError, LinkRefused, LinkTimeout, PeerLost, WireError
from zpptool.wire.message.framing import CHUNK_BYTES, Buffer, Kind, Limits, encode
from zpptool.wire.protocol.flow_control import Window
from zpptool.wire.protocol.link_messages import Party, Word, encode_word
from zpptool.wire.security.exposure import LinkSecurity, protect
from zpptool.wire.sockets import LINGER_S, Context, attach, check_endpoint, make_socket

Fault = TypeVar("Fault", bound=LinkError)
# Plain integers, as everywhere on the way of a message: zmq's flags are enums, whose arithmetic costs more than the
# calls it is for.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
WORDS_WAITING = 64
"""Words of the link that may wait in a socket beside the window's messages."""

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
    """One end of a hop. Its context, socket and I/O thread are its own, so that closing it flushes just this link.

    Attributes:
        stage: the place that this end belongs to.
        peer: the other side, as errors name it.
        endpoint: the address between them.
        limits: what this end accepts of one message.
        party: who this end is, in which run and epoch.
        refused: how many greetings and connections were turned away.
        last_error: the last of these, or the last connection of its own that failed, in words; empty for none.
    """

    def __init__(
        self,
        kind: int,
        address: str,
        *,
        stage: int,
        peer: int,
        bind: bool,
        party: Party,
        window: Window | None,
        limits: Limits | None,
        note: Callable[[str], None] | None,
        context: Context | None,
        safety: LinkSecurity | None,
        max_frame_bytes: int,
    ) -> None:
        self.stage = stage
        self.peer = "the head" if peer == HEAD else place_name(peer)
        self.limits = limits or Limits()
        self.endpoint = address
        self.party = party
        self.refused = 0
        self.last_error = ""
        self._bind = bind
        self._keyed = False
        self._safety = safety or LinkSecurity()
        self._handshakes = Handshakes(remote_address)
        self._awaited = peer
        self._window = window or Window()
        self._note = RateLimitedLog(note)
        self._pid = _process
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._holder: int | None = None
        self._chores: deque[Callable[[], object]] = deque()
        self._closing = False
        self._closed = False
        self._torn = False
        self._linger_s = LINGER_S
        self._own_context: Context | None = None
        if context is None:
            context = self._own_context = zmq.Context()
        waiting = self._window.messages + WORDS_WAITING + self._window.nbytes // CHUNK_BYTES
        self._socket = make_socket(
            context,
            kind,
            # A message that was begun has to go on. The window bounds what is under way; this only bounds what a
            # stranger who reads nothing is answered.
            to_send=waiting + most_chunks(self.limits, self._window.messages),
            to_receive=waiting,
            max_frame_bytes=max_frame_bytes,
        )
        self._wake, self._alarm = net.socketpair()
        self._wake.setblocking(False)
        self._alarm.setblocking(False)
        self._alarm_fd = self._alarm.fileno()
        self._watched = select.poll()
        self._watched.register(int(self._socket.getsockopt(zmq.FD)), select.POLLIN)
        self._watched.register(self._alarm_fd, select.POLLIN)
        self._attendant = LinkMonitor(self, self._socket, words=kind == zmq.ROUTER)
        _open.add(self)
        try:
            check_endpoint(address, bind=bind)
            self._keyed = protect(self._socket, address, bind=bind, safety=self._safety, refused=self._not_let_in)
            self.endpoint = attach(self._socket, address, bind=bind)
        except ZppError:
            self.close(0)
            raise

    @property
    def state(self) -> str:
        """How the link stands: `waiting` for its peer, `connected`, `lost`, or `refused` by it."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Whether the peer is there and welcome."""
        return self.state == "connected"

    @property
    def sequence(self) -> int:
        """The last message that went over the link in this epoch; -1 for none."""
        raise NotImplementedError

    def ping(self) -> None:
        """Look for the peer, where that can be done. Never waits."""

    def close(self, linger_s: float = LINGER_S) -> None:
        """End the link. What was accepted goes on being sent for `linger_s` at most. Closing twice is no fault.

        In a forked child it does nothing: the link belongs to the parent.
        """
        if self._closed or _process != self._pid:
            return
        self._linger_s = linger_s
        self._closing = True
        self._rouse()
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
        told = (
            f"waited {deadline.timeout_s:g} s for {self.peer} ({self.endpoint}) to {awaited}; {self._how_it_stands()}"
        )
        if self.connected:
            hint = f"See the log of {self.peer}: it is busy, stopped or hung."
        else:
            hint = f"Is {self.peer} running, and does the address lead to it?"
        return self._made(LinkTimeout, f"{place_name(self.stage).capitalize()} {told}", hint)

    def fault(self, told: str, hint: str | None = None) -> LinkError:
        """An error of this link: `told` says what happened."""
        return self._made(LinkError, f"{place_name(self.stage).capitalize()}: {told} ({self.endpoint})", hint)

    def lost(self) -> PeerLost:
        """The error for a peer that was there and has gone."""
        return self._made(
            PeerLost,
            f"{place_name(self.stage)} has lost {self.peer} at {self.endpoint}: it ended, or the way to it is cut",
        )

    def refusal(self, error: WireError) -> WireError:
        """A received message's fault, told with this link's names."""
        told = f"{place_name(self.stage).capitalize()} refused a message from {self.peer} ({self.endpoint})"
        return WireError(f"{told}: {error.message}", error.hint, **self._standing())

    def _refused_by(self, who: str, reason: str, *, plan: bool) -> LinkRefused:
        """The error for a link that one of its sides will not have."""
        return self._made(
            LinkRefused,
            f"{place_name(self.stage).capitalize()}: {who} ({self.endpoint}): {reason}",
            "Start all stages of one pipeline with the same plan, each at its own place.",
            state="refused",
            exit_code=ExitCode.INVALID if plan else ExitCode.STAGE,
        )

    def _made(
        self, kind: type[Fault], told: str, hint: str | None = None, *, state: str | None = None, **more: Any
    ) -> Fault:
        standing = self._standing() | ({"state": state} if state else {})
        last = f"message {self.sequence}" if self.sequence >= 0 else "no message"
        told = f"{told.rstrip('.')} (epoch {self.party.epoch}, {last} so far, {standing['state']})."
        return kind(told, hint, **standing, **more)

    def _standing(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "peer": self.peer,
            "endpoint": self.endpoint,
            "epoch": self.party.epoch,
            "sequence": self.sequence,
            "state": self.state,
        }

    def _how_it_stands(self) -> str:
        if self.connected:
            return "it is connected"
        return f"it is not connected ({self.last_error})" if self.last_error else "it is not connected"

    def _observe(self, event: int, value: int) -> None:
        """Take in an event of the socket's monitor; called from the attendant's thread."""
        failed = self._handshakes.take(event, value)
        if failed is not None:
            self._come_to_nothing(failed)
        if event == zmq.EVENT_DISCONNECTED:
            self._post(lambda: self._cut(value))
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._post(self._greet)
        if not self._bind:
            self._attendant.mend_later(failed is not None)

    def _come_to_nothing(self, failed: Failure) -> None:
        """A connection has ended before its handshake was done."""
        if not self._bind:
            self.last_error = trouble_words(failed, self.peer, keyed=self._keyed)
            self._note(f"{self.endpoint}: {self.last_error}")
        elif why := refusal_words(failed, keyed=self._keyed):
            self._not_let_in(failed.address, why)

    def _not_let_in(self, address: str, why: str) -> None:
        """Count and tell a connection from an address, or from nobody knows where, that was refused."""
        who = f"a connection from {address}" if address else "a connection"
        self._turned_away(f"{who} was refused: {why}")

    def _turned_away(self, told: str) -> None:
        with self._counting:  # the gate's thread counts too
            self.refused += 1
            self.last_error = told
        self._note(f"{self.endpoint}: {told}")

    def _mend(self) -> None:
        """Connect anew: after some failures of a handshake libzmq gives up for good."""
        self._post(self._reconnect)

    def _reconnect(self) -> None:
        with suppress(zmq.ZMQError):  # nothing is left to end
            self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)

    def _cut(self, connection: int) -> None:
        """A connection has ended."""
        raise NotImplementedError

    def _greet(self) -> None:
        """A connection has begun."""

    def _hear(self) -> None:
        """Take in the words of the peer that wait in the socket."""

    def _packed(self, word: Word, session: int = 0) -> Buffer:
        """The one frame of a word."""
        return encode(
            Kind.LINK, encode_word(word), (),
            source=self.stage, epoch=self.party.epoch, sequence=0, session=session,
        )[0]  # fmt: skip

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
        if self._chores or self._closing:
            self._catch_up()
            if self._closing and not self._attendant.is_here:  # closing waits for the attendant's end
                self._dispose()
        else:
            self._hear()
        self._holder = None
        self._turn.release()
        if self._chores and not self._closed:
            self._do_chores()

    def _catch_up(self) -> None:
        """Do the chores and hear the words that have come up meanwhile; the caller has the socket."""
        if self._torn or self._closed:
            return
        while self._chores:
            self._chores.popleft()()
        self._hear()

    def _post(self, chore: Callable[[], object]) -> None:
        """Have `chore` done by whoever has the socket, or here and now if nobody has it. Never waits."""
        self._chores.append(chore)
        self._rouse()
        self._do_chores()

    def _do_chores(self) -> None:
        while self._chores and not self._closed and self._turn.acquire(blocking=False):
            self._holder = threading.get_ident()
            self._leave()

    def _hear_soon(self) -> bool:
        """Hear what the peer says, unless another thread has the socket; then that one will, and this is False."""
        if not self._turn.acquire(blocking=False):
            return False
        self._holder = threading.get_ident()
        self._leave()
        return True

    def _rouse(self) -> None:
        """Wake a thread that waits in this link."""
        with suppress(OSError):  # full, or closed by another thread just now
            self._wake.send(b"\0")

    def _readable(self) -> bool:
        """Whether something waits in the socket. Asking makes libzmq take note of what has happened."""
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def _wait(self, deadline: Deadline) -> None:
        """Return when something may have come or a chore is to be done, or the deadline has passed.

        To be called when nothing was readable and the socket was not used since: libzmq's descriptor tells of a change
        once, to the next call for the socket, whatever that is. (Asking it directly takes half as long as `zmq_poll`.)

        Raises:
            LinkError: the link was closed meanwhile.
        """
        for descriptor, _ in self._watched.poll(deadline.remaining_ms()):
            if descriptor == self._alarm_fd:
                self._alarm.recv(4096)
        if self._closing:
            raise self.fault(f"the link to {self.peer} was closed while waiting")
        self._catch_up()

    def _dispose(self) -> None:
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        self._attendant.stop(self._socket)
        self._socket.close(linger=int(self._linger_s * 1000))
        if self._own_context:
            self._own_context.term()  # returns when all is sent or the linger has passed
        self._wake.close()
        self._alarm.close()
