# SPDX-License-Identifier: Apache-2.0
"""What the tests of a link's Unix socket have in common."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from links import SOON_S, receive_number, send_number, wait_until

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, Window
from zpptool.wire.local.unix_socket import UnixSocketReceiver, UnixSocketSender
from zpptool.wire.message.framing import INLINE_BELOW_BYTES, Kind

SMALL = 1000
SIZES = (0, SMALL, INLINE_BELOW_BYTES - 9, INLINE_BELOW_BYTES, 300_000, 2 << 20, (2 << 20) + 1, 3_000_000)
"""Payload sizes that use the Unix socket, one ZeroMQ message, shared memory and chunks, with their bounds."""


@contextmanager
def links(
    address: str = "tcp://127.0.0.1:*", *, window: Window | None = None, sender_shares: bool = True, shares: bool = True
) -> Iterator[tuple[LinkSender, LinkReceiver]]:
    """Both ends of a link on this host."""
    window = window or Window(4)
    with LinkSender(
        address, stage=0, peer=1, options=LinkOptions(window=window, shared_memory=sender_shares)
    ) as sender:
        with LinkReceiver(
            sender.endpoint, stage=1, peer=0, options=LinkOptions(window=window, shared_memory=shares)
        ) as receiver:
            yield sender, receiver
        sender.close(linger_s=0)


def unix_sockets(
    sender: LinkSender, receiver: LinkReceiver
) -> tuple[UnixSocketSender | None, UnixSocketReceiver | None]:
    """Both ends of the session's Unix socket."""
    assert sender._admission.session is not None
    return sender._admission.session.outbound.unix_socket, receiver._inbound.unix_socket


def used_unix_socket(sender: LinkSender) -> bool:
    """Whether the last message was sent by the Unix socket."""
    assert sender._admission.session is not None
    unix_socket = sender._admission.session.outbound.unix_socket
    return unix_socket is not None and unix_socket._not_before <= sender.sequence


def send_small(sender: LinkSender, number: int) -> bool:
    """Send a small message; whether it was sent by the Unix socket."""
    send_number(sender, number, bytes(SMALL))
    return used_unix_socket(sender)


def open_unix_socket(sender: LinkSender, receiver: LinkReceiver, number: int = 0) -> None:
    """Send and receive a message and wait for its acknowledgement: from then on the Unix socket is used."""
    send_number(sender, number)
    assert receive_number(receiver) == number
    wait_until(lambda: sender.queue == 0)


@cache
def noise() -> memoryview:
    return memoryview(random.Random(5).randbytes(4 << 20))


def numbered_frames(number: int, size: int, count: int) -> list[memoryview]:
    """The frames of a message; they differ from number to number."""
    return [noise()[7 * number + index :][:size] for index in range(count)]


def out_of_memory(*_: int) -> None:
    """Replaces the call that allocates shared memory, so that frames are sent in chunks."""
    raise OSError(28, "No space left on device")


def send_frames(sender: LinkSender, number: int, size: int, count: int = 1) -> None:
    sender.send(Kind.TENSORS, b"%d" % number, numbered_frames(number, size, count), timeout_s=SOON_S)


def expect_frames(receiver: LinkReceiver, number: int, size: int, count: int = 1) -> None:
    """Receive the next message and compare it bit for bit."""
    message = receiver.recv(SOON_S)
    assert (message.kind, message.header, message.sequence) == (Kind.TENSORS, b"%d" % number, number)
    assert [frame.nbytes for frame in message.frames] == [size] * count
    assert list(message.frames) == numbered_frames(number, size, count)


MIXED_MESSAGES = ((SMALL, 1), (0, 1), (3_000_000, 2), (SMALL, 2), (SMALL, 1))
"""The first two are sent by the Unix socket, and the others are not when shared memory is refused."""


def send_mixed_messages(sender: LinkSender) -> None:
    """Send as many of them as fit the window at once, and the last one in another thread."""
    for number, planned in enumerate(MIXED_MESSAGES[:4], start=1):
        send_frames(sender, number, *planned)
        assert used_unix_socket(sender) or number > 2
    threading.Thread(target=send_frames, args=(sender, 5, *MIXED_MESSAGES[4])).start()


@contextmanager
def sent_while_receiving(receiver: LinkReceiver, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """While a block receives, call `act` once, after the Unix socket was found empty and before ZeroMQ is read."""
    ask = receiver._arrivals._receive
    pending = [act]

    def do_and_ask() -> list[memoryview] | None:
        if pending:
            pending.pop()()
            wait_until(receiver._readable)
        return ask()

    patch.setattr(receiver._arrivals, "_receive", do_and_ask)
    yield
    assert not pending
