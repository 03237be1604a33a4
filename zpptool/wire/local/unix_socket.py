# SPDX-License-Identifier: Apache-2.0
"""A Unix socket beside ZeroMQ's, for the short messages of two processes on one host: one process wakes the other
directly, where ZeroMQ has a thread on either side between them.

The invariant: a message that is sent here arrives whole, once and in order, or is not sent here at all; and a message
is sent here only when the receiver has acknowledged everything that was sent by ZeroMQ before it. So a receiver that
finds a message here has nothing older to read, and one that finds a message at ZeroMQ reads here once more before it
returns that.

The address is abstract (`unix(7)`): it has no file that could be left behind, and belongs to one network namespace.
"""

from __future__ import annotations

import os
import secrets
import select
import socket as net
from pathlib import Path

from zpptool.ownership import is_own_peer
from zpptool.wire.link_errors import WireError
from zpptool.wire.local.shared_memory import this_host
from zpptool.wire.message.framing import INLINE_BELOW_BYTES, PREAMBLE_BYTES, Buffer

NAME = "unix"
"""Its name in the handshake."""
LONGEST_BYTES = PREAMBLE_BYTES + INLINE_BELOW_BYTES
"""The longest message that is sent here: a preamble, a header, and a payload in the same frame."""
_TOKEN_BYTES = 16


def this_namespace() -> str | None:
    """The boot id, the network namespace and the user: two processes that share these can connect to each other.

    None where there are no abstract addresses, and for the overflow user, which stands for every user that a user
    namespace does not map.
    """
    host, user = this_host(), os.geteuid()
    if host is None:
        return None
    try:
        if user == int(Path("/proc/sys/kernel/overflowuid").read_text()):
            return None
        return f"{host}:{os.stat('/proc/self/ns/net').st_ino}:{user}"
    except OSError:
        return None


class UnixSocketSender:
    """The sender's end, opened when it welcomes a receiver of the same namespace.

    Attributes:
        offer: what the receiver needs to connect, as it is sent in the welcome.

    Raises:
        OSError: this system has no such socket.
    """

    def __init__(self) -> None:
        self.offer = secrets.token_hex(_TOKEN_BYTES)
        self._not_before = 0
        self._stream: net.socket | None = None
        self._listener: net.socket | None = _new_socket()
        try:
            self._listener.bind(_address(self.offer))
            self._listener.listen(1)
        except OSError:
            self.close()
            raise

    def sent_by_zeromq(self, sequence: int) -> None:
        """Account for a message that was sent by ZeroMQ: nothing is sent here until it was acknowledged."""
        self._not_before = sequence + 1

    def send(self, part: Buffer, taken: int) -> bool:
        """Send a message that has one part; False when it cannot be sent here now.

        Args:
            taken: how many messages of the session the receiver has acknowledged.
        """
        if taken < self._not_before or len(part) > LONGEST_BYTES:
            return False
        stream = self._stream or self._accepted()
        if stream is None:
            return False
        try:
            stream.send(part, net.MSG_NOSIGNAL)
        except BlockingIOError:  # its buffer is full
            return False
        except OSError:  # the receiver is gone, or has ended the session: ZeroMQ reports which
            self.close()
            return False
        return True

    def close(self) -> None:
        """Send nothing more. What was sent can still be read."""
        for socket in (self._stream, self._listener):
            if socket is not None:
                socket.close()
        self._stream = self._listener = None

    def _accepted(self) -> net.socket | None:
        """The receiver's connection, if there is one; connections of other users are closed."""
        while self._listener is not None:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return None
            if is_own_peer(stream):
                stream.setblocking(False)
                self._stream = stream
                self._listener.close()
                self._listener = None
            else:
                stream.close()
        return self._stream


class UnixSocketReceiver:
    """The receiver's end.

    Args:
        offer: from the sender's welcome.

    Raises:
        WireError: no process listens there, or one of another user.
    """

    def __init__(self, offer: str) -> None:
        self._ended = False
        self._watched: select.poll | None = None
        self._stream = _new_socket()
        try:
            self._stream.connect(_address(offer))
        except (OSError, UnicodeError) as error:
            self._stream.close()
            raise WireError(f"the sender's Unix socket cannot be reached: {error}.") from error
        if not is_own_peer(self._stream):
            self._stream.close()
            raise WireError("the sender's Unix socket is another user's.")

    def watch_with(self, watched: select.poll) -> None:
        """Register with `watched` until the connection has ended."""
        watched.register(self._stream, select.POLLIN)
        self._watched = watched

    def receive(self) -> bytes | None:
        """The one part of the next message; None when there is none."""
        if self._ended:
            return None
        try:
            part = self._stream.recv(LONGEST_BYTES + 1)
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        if not part:
            self.close()
        return part or None

    def close(self) -> None:
        """Read nothing more."""
        if self._ended:
            return
        self._ended = True
        if self._watched is not None:
            self._watched.unregister(self._stream)
        self._stream.close()


def _new_socket() -> net.socket:
    made = net.socket(net.AF_UNIX, net.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def _address(offer: str) -> str:
    return f"\0zpptool.{offer}"
