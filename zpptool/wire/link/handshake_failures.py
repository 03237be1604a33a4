# SPDX-License-Identifier: Apache-2.0
"""Connections whose handshake fails: which ones, by the events of a socket's monitor, and why.

The invariant: a connection that ends before its handshake is complete is reported once. One whose key was refused is
reported by the ZAP server, which knows whose key it is, and not here.
"""

from __future__ import annotations

import os
import socket as net
from collections.abc import Callable
from typing import NamedTuple

import zmq

FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
BEGUN = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_CRYPTOGRAPHIC = 0x11000001
"""ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC of zmq.h, which pyzmq does not name: the client's box could not be opened."""


class Failure(NamedTuple):
    """A connection that ended before its handshake was complete.

    Attributes:
        address: its remote address; empty where that is not known any more.
        event: the monitor's event with the reason; 0 where there was none.
        value: that event's value.
    """

    address: str
    event: int
    value: int


class Handshakes:
    """Finds the connections that end before their handshake is complete, from the events of a socket's monitor.

    Args:
        address_of: returns the remote address of a connection's file descriptor.
    """

    def __init__(self, address_of: Callable[[int], str]) -> None:
        self._address_of = address_of
        self._greeting: dict[int, str] = {}
        self._failure = (0, 0)

    def take(self, event: int, value: int) -> Failure | None:
        """Process one event; the failure, if it ends a connection whose handshake was not complete.

        A success names no connection: it is attributed to the youngest, since a handshake takes almost no time.
        """
        if event & BEGUN:
            self._greeting[value] = self._address_of(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._greeting:
                self._greeting.popitem()
        elif event & FAILED:
            self._failure = (event, value)  # the end of that connection is the next event
        elif event == zmq.EVENT_DISCONNECTED:
            failure, self._failure = self._failure, (0, 0)
            address = self._greeting.pop(value, None)
            if address is not None:
                return Failure(address, *failure)
        return None


def remote_address(descriptor: int) -> str:
    """The remote address of a connection; empty where it has ended already, or is no tcp connection."""
    try:
        with net.socket(fileno=os.dup(descriptor)) as copy:
            name = copy.getpeername()
    except OSError:
        return ""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) > 1 else ""


def refusal_reason(failure: Failure, *, keyed: bool) -> str | None:
    """Why the handshake of a connection to this binding end failed; None where the ZAP server has reported it."""
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return None
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if failure.value == _CRYPTOGRAPHIC:
            return "it expects another key here; were the key files generated together?"
        if failure.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return "it speaks without keys" if keyed else "it speaks with keys, and there are none here"
    # A peer without keys may disconnect because of what it reads here, before it has announced that it has none.
    return "it broke off the handshake, or speaks another protocol" + (" or without keys" if keyed else "")


def connect_failure(failure: Failure, peer: str, *, keyed: bool) -> str:
    """Why the handshake of a connection from this connecting end failed."""
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return f"{peer} does not admit this key; were the key files generated together?"
    if (
        failure.event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        and failure.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
    ):
        theirs, ours = ("without", "with") if keyed else ("with", "without")
        return f"the process at that address speaks {theirs} keys, and this side {ours}"
    if keyed:
        return (
            f"the process at that address broke off the handshake: it is not {peer}, or has another key; "
            "were the key files generated together?"
        )
    return "the process at that address broke off the handshake, or speaks another protocol or with keys"
