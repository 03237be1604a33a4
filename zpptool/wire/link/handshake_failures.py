# SPDX-License-Identifier: Apache-2.0
"""Connections that come to nothing: which ones, by what a socket's monitor tells, and why, in words.

The invariant: a connection that ends before its handshake is done is told once. One whose key was refused is told by
the gate, which knows whose it is, and not here.
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
"""ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC of zmq.h, which pyzmq does not name: the client's box did not open."""


class Failure(NamedTuple):
    """A connection that ended before its handshake was done.

    Attributes:
        address: where it came from; empty where that is not known any more.
        event: the monitor's event that told why; 0 where none did.
        value: that event's value.
    """

    address: str
    event: int
    value: int


class Handshakes:
    """Which connections end before their handshake is done, by what a socket's monitor told so far.

    Args:
        address_of: the remote address of a connection's file descriptor, in words.
    """

    def __init__(self, address_of: Callable[[int], str]) -> None:
        self._address_of = address_of
        self._greeting: dict[int, str] = {}
        self._failure = (0, 0)

    def take(self, event: int, value: int) -> Failure | None:
        """Take in one event; the failure, where it ends a connection that came to nothing.

        A success names no connection: it is taken for the youngest's, as a peer needs no time for it.
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
    """Where a connection comes from; empty where it has ended already, or is no tcp connection."""
    try:
        with net.socket(fileno=os.dup(descriptor)) as copy:
            name = copy.getpeername()
    except OSError:
        return ""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) > 1 else ""


def refusal_words(failure: Failure, *, keyed: bool) -> str | None:
    """Why a connection to this binding end came to nothing; None where the gate has told it already."""
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return None
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if failure.value == _CRYPTOGRAPHIC:
            return "it expects another key here; were the key files generated together?"
        if failure.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return "it speaks without keys" if keyed else "it speaks with keys, and there are none here"
    # Who speaks without keys may have gone, by what he read here, before he has said so.
    return "it broke off the handshake, or speaks another protocol" + (" or without keys" if keyed else "")


def trouble_words(failure: Failure, peer: str, *, keyed: bool) -> str:
    """Why a connection of this connecting end came to nothing."""
    if failure.event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return f"{peer} does not admit this key; were the key files generated together?"
    if (
        failure.event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        and failure.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
    ):
        theirs, ours = ("without", "with") if keyed else ("with", "without")
        return f"who listens there speaks {theirs} keys, and this side {ours}"
    if keyed:
        return (
            f"who listens there broke off the handshake: it is not {peer}, or has another key; "
            "were the key files generated together?"
        )
    return "who listens there broke off the handshake, or speaks another protocol or with keys"
