# SPDX-License-Identifier: Apache-2.0
"""Who reads every packet between two hosts: with keys nothing that is sent is among them; without, all of it is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from netns import PORT_BASE, Network, network, why_not

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender
from zpptool.wire.message.framing import Kind
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import generate, link_keys

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(bool(why_not()), reason=why_not())]

SOON_S = 30.0
EVERY_PROTOCOL = 3
LARGE_BYTES = 8 << 20
"""Of several chunks, encrypted as bulk is."""


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network(2) as made:
        yield made


@contextmanager
def captured(hosts: Network, host: int) -> Iterator[list[bytes]]:
    """Every packet that comes to a host or leaves it."""
    packets: list[bytes] = []
    with hosts.inside(host), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PROTOCOL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        tap.settimeout(0.2)
        over = threading.Event()

        def read() -> None:
            while True:
                try:
                    packets.append(tap.recv(65536))
                except TimeoutError:
                    if over.is_set():
                        return

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield packets
        finally:
            over.set()
            reader.join()


@pytest.mark.parametrize("keyed", [True, False])
def test_what_is_sent_can_be_read_on_the_way_without_keys_alone(hosts: Network, keyed: bool) -> None:
    """Hosts of a test are one machine, whose memory they would share."""
    header, small, large = (os.urandom(32) for _ in range(3))
    first, second = generate(2)
    ours, theirs = (
        (LinkSecurity(link_keys(first, 0, 1)), LinkSecurity(link_keys(second, 1, 0)))
        if keyed
        else [LinkSecurity(insecure=True)] * 2
    )
    address = f"tcp://{hosts.addresses[0]}:{PORT_BASE}"
    with captured(hosts, 1) as packets:
        with hosts.inside(0):
            sender = LinkSender(address, stage=0, peer=1, options=LinkOptions(security=ours, shared_memory=False))
        with hosts.inside(1):
            receiver = LinkReceiver(address, stage=1, peer=0, options=LinkOptions(security=theirs))
        with sender, receiver:
            for frame in (small, large * (LARGE_BYTES // 32)):
                sent = sender.send(Kind.TENSORS, header, [frame], timeout_s=SOON_S)
                message = receiver.recv(SOON_S)
                assert (bytes(message.header), bytes(message.frames[0])) == (header, frame)
                sent.wait(SOON_S)
    seen = b"".join(packets)
    assert len(seen) > LARGE_BYTES
    assert [secret in seen for secret in (header, small, large)] == [not keyed] * 3
