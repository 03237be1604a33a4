# SPDX-License-Identifier: Apache-2.0
"""What the tests of a link have in common; `conftest.py` makes its fixtures known."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from zpptool.wire.link import LinkReceiver, LinkSender, LinkTimeout, Window
from zpptool.wire.local.unix_socket import UnixSocketSender
from zpptool.wire.message.framing import Kind

SOON_S = 10.0


@pytest.fixture
def push() -> Iterator[LinkSender]:
    """Stage 0's sending end on a free port."""
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, window=Window(4)) as link:
        yield link
        link.close(linger_s=0)


@pytest.fixture
def pull(push: LinkSender) -> Iterator[LinkReceiver]:
    """Stage 1's receiving end of it."""
    with LinkReceiver(push.endpoint, stage=1, peer=0, window=Window(4)) as link:
        yield link


def wait_until(condition: Callable[[], object], within_s: float = SOON_S) -> None:
    """Fail when the condition does not come true."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def send(link: LinkSender, number: int, *frames: bytes, timeout_s: float = SOON_S) -> None:
    """A message that says its number."""
    link.send(Kind.CONTROL, str(number).encode(), frames, timeout_s=timeout_s)


def fill(link: LinkSender, timeout_s: float) -> tuple[int, LinkTimeout]:
    """Send 4 MB messages until one is not taken in time: how many were, and what the next one raised."""
    for accepted in range(1000):
        try:
            send(link, accepted, bytes(4_000_000), timeout_s=timeout_s)
        except LinkTimeout as error:
            return accepted, error
    raise AssertionError("the link took 4 GB that nobody read")


def receive(link: LinkReceiver) -> int:
    """The number of the next message."""
    return int(link.recv(SOON_S).header)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def open_sockets() -> int:
    """How many this process has. (Shared memory lasts as long as the object that has made it.)"""
    count = 0
    for descriptor in open_descriptors():
        with suppress(OSError):  # the listing's own has gone
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


def is_listed(sender: UnixSocketSender | None) -> bool:
    """Whether the system knows the sender's address, be it that of the connection only."""
    assert sender is not None
    with open("/proc/net/unix") as known:
        return f"@zpptool.{sender.offer}" in known.read()
