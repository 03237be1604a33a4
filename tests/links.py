# SPDX-License-Identifier: Apache-2.0
"""What the tests of a link have in common; `conftest.py` registers its fixtures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, LinkTimeout, Window
from zpptool.wire.local.unix_socket import UnixSocketSender
from zpptool.wire.message.framing import Kind

SOON_S = 10.0


@pytest.fixture
def sender() -> Iterator[LinkSender]:
    """Stage 0's sending end on a free port."""
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=LinkOptions(window=Window(4))) as link:
        yield link
        link.close(linger_s=0)


@pytest.fixture
def receiver(sender: LinkSender) -> Iterator[LinkReceiver]:
    """Stage 1's receiving end of it."""
    with LinkReceiver(sender.endpoint, stage=1, peer=0, options=LinkOptions(window=Window(4))) as link:
        yield link


@pytest.fixture(params=["tcp", "ipc"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address for a sender to bind, by either transport."""
    return "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/link"


def wait_until(condition: Callable[[], object], within_s: float = SOON_S) -> None:
    """Fail if the condition is not true in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition was not true in time"
        time.sleep(0.005)


def send_number(link: LinkSender, number: int, *frames: bytes, timeout_s: float = SOON_S) -> None:
    """Send a message whose header is its number."""
    link.send(Kind.CONTROL, str(number).encode(), frames, timeout_s=timeout_s)


def fill_window(link: LinkSender, timeout_s: float) -> tuple[int, LinkTimeout]:
    """Send 4 MB messages until one times out; how many were accepted, and the timeout."""
    for accepted in range(1000):
        try:
            send_number(link, accepted, bytes(4_000_000), timeout_s=timeout_s)
        except LinkTimeout as error:
            return accepted, error
    raise AssertionError("the link accepted 4 GB that was not read")


def receive_number(link: LinkReceiver) -> int:
    """Receive a message of `send_number`; its number."""
    return int(link.recv(SOON_S).header)


def open_descriptors() -> set[str]:
    """The file descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


def open_sockets() -> int:
    """The number of sockets of this process. (Shared memory stays open as long as the object that has created it.)"""
    count = 0
    for descriptor in open_descriptors():
        with suppress(OSError):  # the descriptor of the listing itself is closed
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


def is_bound(end: UnixSocketSender | None) -> bool:
    """Whether the sender's address, or a connection to it, exists in the system."""
    assert end is not None
    with open("/proc/net/unix") as sockets:
        return f"@zpptool.{end.offer}" in sockets.read()
