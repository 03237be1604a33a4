# SPDX-License-Identifier: Apache-2.0
"""A receiver whose sender has moved to another address, and a second receiver that waits for a place that is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from zpptool.config.port_probe import free_port
from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkRefused, LinkSender, Party, PeerLost
from zpptool.wire.message.framing import Kind

pytestmark = pytest.mark.timeout(60)
SOON_S = 10.0


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def open_sender(epoch: int, address: str = "tcp://127.0.0.1:*") -> LinkSender:
    """Stage 1's sending end, in an epoch of one run."""
    return LinkSender(
        address,
        stage=1,
        peer=2,
        options=LinkOptions(party=Party(1, 3, run_id="run", epoch=epoch), follows=True),
    )


def next_header(link: LinkReceiver) -> bytes:
    """The header of the next message; a lost sender is waited for."""
    end = time.monotonic() + SOON_S
    while True:
        with suppress(PeerLost):
            return bytes(link.recv(SOON_S).header)
        assert time.monotonic() < end


def test_a_receiver_moves_to_where_its_sender_is_in_the_next_epoch() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        open_sender(1) as old,
        LinkReceiver(old.endpoint, stage=2, peer=1, options=LinkOptions(party=Party(2, 3), follows=True)) as receiver,
    ):
        old.send(Kind.CONTROL, b"before", timeout_s=SOON_S)
        assert next_header(receiver) == b"before"
        receiver.move(address)
        receiver.move(address)  # the second call changes nothing
        with pytest.raises(PeerLost):
            receiver.recv(SOON_S)
        with open_sender(2, address) as new:
            new.send(Kind.CONTROL, b"after", timeout_s=SOON_S)
            assert next_header(receiver) == b"after"
            assert (receiver.endpoint, receiver.party.epoch) == (address, 2)
            wait_until(lambda: old.ping() or not old.connected)
            assert new.counters.sessions == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "what?", "", "udp://127.0.0.1:1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with (
        open_sender(1) as sender,
        LinkReceiver(sender.endpoint, stage=2, peer=1, options=LinkOptions(party=Party(2, 3))) as receiver,
    ):
        with pytest.raises(ZppError) as refused:
            receiver.move(address)
        assert refused.value.exit_code is ExitCode.ADDRESS
        sender.send(Kind.CONTROL, b"still here", timeout_s=SOON_S)
        assert next_header(receiver) == b"still here"


def test_a_receiver_without_keys_does_not_move_to_an_exposed_address() -> None:
    with (
        open_sender(1) as sender,
        LinkReceiver(sender.endpoint, stage=2, peer=1, options=LinkOptions(party=Party(2, 3))) as receiver,
    ):
        with pytest.raises(ZppError, match="needs keys"):
            receiver.move("tcp://10.0.0.3:15550")
        assert receiver.endpoint == sender.endpoint


def test_a_receiver_refused_for_a_taken_place_is_counted_and_admitted_when_it_is_free() -> None:
    with open_sender(1) as sender:
        first = LinkReceiver(sender.endpoint, stage=2, peer=1, options=LinkOptions(party=Party(2, 3), follows=True))
        sender.send(Kind.CONTROL, b"to the first", timeout_s=SOON_S)
        assert next_header(first) == b"to the first"
        for party in (Party(0, 3), Party(2, 4), Party(2, 3, digest="")):
            other = LinkReceiver(sender.endpoint, stage=2, peer=1, options=LinkOptions(party=party, follows=True))
            with other, pytest.raises(LinkRefused):
                other.recv(SOON_S)
        assert sender.counters.knocks == 1, "only the one that fits"
        with LinkReceiver(
            sender.endpoint, stage=2, peer=1, options=LinkOptions(party=Party(2, 3), follows=True)
        ) as second:
            with pytest.raises(LinkRefused, match="another stage 2 is connected already"):
                second.recv(SOON_S)
            assert sender.counters.knocks == 2
            first.close()
            wait_until(lambda: sender.ping() or not sender.connected)
            sender.begin("run", 2)
            second.greet_again()
            sender.send(Kind.CONTROL, b"to the second", timeout_s=SOON_S)
            assert next_header(second) == b"to the second"
