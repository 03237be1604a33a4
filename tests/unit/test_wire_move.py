# SPDX-License-Identifier: Apache-2.0
"""A receiver that is told that its sender's place has moved, and a second one who waits for a place that is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link import LinkReceiver, LinkRefused, LinkSender, Party, PeerLost
from zpptool.wire.message.framing import Kind

pytestmark = pytest.mark.timeout(60)
SOON_S = 10.0


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def sender(epoch: int) -> LinkSender:
    """Stage 1's sending end, in an epoch of one run."""
    return LinkSender("tcp://127.0.0.1:*", stage=1, peer=2, party=Party(1, 3, run_id="run", epoch=epoch), follows=True)


def said(link: LinkReceiver) -> bytes:
    """What comes next; a sender that is lost is waited for."""
    end = time.monotonic() + SOON_S
    while True:
        with suppress(PeerLost):
            return bytes(link.recv(SOON_S).header)
        assert time.monotonic() < end


def test_a_receiver_moves_to_where_its_sender_is_in_the_next_epoch() -> None:
    with sender(1) as old, sender(2) as new:
        with LinkReceiver(old.endpoint, stage=2, peer=1, party=Party(2, 3), follows=True) as pull:
            old.send(Kind.CONTROL, b"before", timeout_s=SOON_S)
            assert said(pull) == b"before"
            pull.move(new.endpoint)
            pull.move(new.endpoint)  # told twice is told once
            with pytest.raises(PeerLost):
                pull.recv(SOON_S)
            new.send(Kind.CONTROL, b"after", timeout_s=SOON_S)
            assert said(pull) == b"after"
            assert (pull.endpoint, pull.party.epoch) == (new.endpoint, 2)
            until(lambda: old.ping() or not old.connected)
        assert new.tally.sessions == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "what?", "", "udp://127.0.0.1:1"])
def test_what_is_no_address_is_not_moved_to(address: str) -> None:
    with sender(1) as push, LinkReceiver(push.endpoint, stage=2, peer=1, party=Party(2, 3)) as pull:
        with pytest.raises(ZppError) as refused:
            pull.move(address)
        assert refused.value.exit_code is ExitCode.ADDRESS
        push.send(Kind.CONTROL, b"still here", timeout_s=SOON_S)
        assert said(pull) == b"still here"


def test_without_keys_nobody_moves_to_where_strangers_are() -> None:
    with sender(1) as push, LinkReceiver(push.endpoint, stage=2, peer=1, party=Party(2, 3)) as pull:
        with pytest.raises(ZppError, match="needs keys"):
            pull.move("tcp://10.0.0.3:15550")
        assert pull.endpoint == push.endpoint


def test_one_who_would_be_welcome_if_the_place_were_free_is_counted_and_comes_in_when_it_is() -> None:
    with sender(1) as push:
        first = LinkReceiver(push.endpoint, stage=2, peer=1, party=Party(2, 3), follows=True)
        push.send(Kind.CONTROL, b"to the first", timeout_s=SOON_S)
        assert said(first) == b"to the first"
        for party in (Party(0, 3), Party(2, 4), Party(2, 3, digest="")):
            other = LinkReceiver(push.endpoint, stage=2, peer=1, party=party, follows=True)
            with other, pytest.raises(LinkRefused):
                other.recv(SOON_S)
        assert push.knocks == 1, "only the one that fits"
        with LinkReceiver(push.endpoint, stage=2, peer=1, party=Party(2, 3), follows=True) as second:
            with pytest.raises(LinkRefused, match="another stage 2 is connected already"):
                second.recv(SOON_S)
            assert push.knocks == 2
            first.close()
            push.begin("run", 2)
            second.greet_again()
            push.send(Kind.CONTROL, b"to the second", timeout_s=SOON_S)
            assert said(second) == b"to the second"
