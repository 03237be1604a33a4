# SPDX-License-Identifier: Apache-2.0
"""A Unix socket beside ZeroMQ's: whole messages in order, for one user, and nothing left behind."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket as net
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from links import SOON_S, is_bound, open_descriptors

from zpptool.wire.compression.adaptive import AdaptiveCompression, WireCodec
from zpptool.wire.link.inbound import Inbound
from zpptool.wire.link.outbound import Outbound
from zpptool.wire.link_errors import WireError
from zpptool.wire.local.unix_socket import LONGEST_BYTES, NAME, UnixSocketReceiver, UnixSocketSender, this_namespace
from zpptool.wire.message.framing import INLINE_BELOW_BYTES, Limits

pytestmark = [
    pytest.mark.skipif(this_namespace() is None, reason="this system has no abstract Unix sockets"),
    pytest.mark.timeout(60),
]
OTHER_USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
SMALL = 1000
SIZES = (0, SMALL, INLINE_BELOW_BYTES - 9, INLINE_BELOW_BYTES, 300_000, 2 << 20, (2 << 20) + 1, 3_000_000)
"""Payload sizes on both sides of each limit."""


@contextmanager
def pair() -> Iterator[tuple[UnixSocketSender, UnixSocketReceiver]]:
    """Both ends, in this process."""
    with closing(UnixSocketSender()) as sender, closing(UnixSocketReceiver(sender.offer)) as receiver:
        yield sender, receiver


def fill_up(sender: UnixSocketSender) -> int:
    """Send until a message is not accepted; how many were."""
    for number in range(1000):
        if not sender.send(b"%08d" % number + bytes(SMALL), 0):
            return number
    raise AssertionError("it accepted everything, though nothing was read")


def numbers(receiver: UnixSocketReceiver) -> list[int]:
    """The numbers of the messages that have arrived."""
    return [int(part[:8]) for part in iter(receiver.receive, None)]


@contextmanager
def stranger(act: Callable[[str, int], bool], offer: str) -> Iterator[None]:
    """Run `act` in another user's process beside a block, which begins when `act` has written to its descriptor.

    Fails if `act` returns False.
    """
    ready, report = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            code = 0 if act(offer, report) else 2
        finally:
            os._exit(code)
    os.close(report)
    try:
        os.read(ready, 1)
        os.close(ready)
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def stranger_socket() -> net.socket:
    made = net.socket(net.AF_UNIX, net.SOCK_SEQPACKET)
    made.settimeout(SOON_S)
    return made


def is_closed_by_peer(stream: net.socket) -> bool:
    """Whether the other side closes it without sending anything."""
    try:
        return stream.recv(100) == b""
    except ConnectionResetError:
        return True


def connects_and_gets_nothing(offer: str, report: int) -> bool:
    """Connect to a sender, report it, and be disconnected."""
    with stranger_socket() as stream:
        stream.connect(f"\0zpptool.{offer}")
        os.write(report, b"x")
        return is_closed_by_peer(stream)


def pretends_and_gets_nothing(offer: str, report: int) -> bool:
    """Bind the address of an offer, report it, and be disconnected."""
    with stranger_socket() as listener:
        listener.bind(f"\0zpptool.{offer}")
        listener.listen(1)
        os.write(report, b"x")
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(SOON_S)
            return is_closed_by_peer(stream)


class TestOnePair:
    def test_messages_pass_whole_and_in_order(self) -> None:
        with pair() as (sender, receiver):
            for size in (1, 32, SMALL, LONGEST_BYTES):
                parts = [bytes([number]) * size for number in range(2)]
                assert [sender.send(part, 0) for part in parts] == [True, True]
                assert [receiver.receive(), receiver.receive(), receiver.receive()] == [*parts, None]

    @settings(deadline=None)
    @given(st.lists(st.one_of(st.binary(min_size=1, max_size=LONGEST_BYTES), st.none()), max_size=40))
    def test_any_mix_of_sending_and_reading_keeps_the_order(self, steps: list[bytes | None]) -> None:
        sent: list[bytes] = []
        got: list[bytes] = []
        with pair() as (sender, receiver):
            for step in steps:
                if step is None:
                    got += [part for part in (receiver.receive(),) if part is not None]
                elif sender.send(step, 0):
                    sent.append(step)
            got += iter(receiver.receive, None)
        assert got == sent

    def test_what_was_sent_before_the_receiver_came_is_not_taken(self) -> None:
        with closing(UnixSocketSender()) as sender:
            assert not sender.send(b"early", 0)
            with closing(UnixSocketReceiver(sender.offer)) as receiver:
                assert sender.send(b"late", 0)
                assert receiver.receive() == b"late"

    def test_too_long_a_message_is_not_taken_and_the_next_one_is(self) -> None:
        with pair() as (sender, receiver):
            assert not sender.send(bytes(LONGEST_BYTES + 1), 0)
            assert sender.send(b"next", 0)
            assert [receiver.receive(), receiver.receive()] == [b"next", None]

    def test_a_full_socket_refuses_and_what_was_sent_before_is_whole(self) -> None:
        with pair() as (sender, receiver):
            accepted = fill_up(sender)
            assert accepted > 0
            assert not sender.send(b"%08d" % accepted, 0)
            assert numbers(receiver) == list(range(accepted))
            assert sender.send(b"%08d" % accepted, 0)
            assert numbers(receiver) == [accepted]

    def test_one_of_the_greatest_length_has_room(self) -> None:
        with pair() as (sender, receiver):
            assert sender.send(b"x" * LONGEST_BYTES, 0)
            assert receiver.receive() == b"x" * LONGEST_BYTES

    def test_nothing_is_accepted_while_a_zeromq_message_is_unacknowledged(self) -> None:
        with pair() as (sender, receiver):
            assert sender.send(b"0", 0)
            sender.sent_by_zeromq(1)
            assert not sender.send(b"2", 0)
            assert not sender.send(b"2", 1)
            assert receiver.receive() == b"0"
            assert receiver.receive() is None
            assert sender.send(b"2", 2)
            assert receiver.receive() == b"2"

    def test_a_receiver_that_has_ended_makes_the_sender_refuse(self) -> None:
        for unread in (0, 3):
            with pair() as (sender, receiver):
                for _ in range(unread):
                    assert sender.send(b"unread", 0)
                receiver.close()
                assert [sender.send(b"x", 0) for _ in range(3)] == [False] * 3
                assert receiver.receive() is None

    def test_a_receiver_that_ended_before_anything_was_sent_makes_the_sender_refuse(self) -> None:
        with closing(UnixSocketSender()) as sender:
            UnixSocketReceiver(sender.offer).close()
            assert [sender.send(b"x", 0) for _ in range(3)] == [False] * 3

    def test_what_was_sent_can_be_read_after_the_sender_has_closed(self) -> None:
        with pair() as (sender, receiver):
            accepted = fill_up(sender)
            sender.close()
            assert not sender.send(b"x", 0)
            assert numbers(receiver) == list(range(accepted))
            assert [receiver.receive(), receiver.receive()] == [None, None]

    def test_a_sender_that_closes_before_it_sent_anything_is_an_end_and_no_fault(self) -> None:
        with pair() as (sender, receiver):
            sender.close()
            assert [receiver.receive(), receiver.receive()] == [None, None]

    def test_closing_twice_is_no_fault(self) -> None:
        with pair() as (sender, receiver):
            for end in (sender, receiver):
                end.close()
                end.close()

    def test_only_one_receiver_is_accepted(self) -> None:
        with pair() as (sender, receiver):
            assert sender.send(b"first", 0)
            with pytest.raises(WireError, match="cannot be reached"):
                UnixSocketReceiver(sender.offer)
            assert sender.send(b"second", 0)
            assert [receiver.receive(), receiver.receive()] == [b"first", b"second"]


class TestPolling:
    def test_it_is_readable_while_a_message_waits(self) -> None:
        watched = select.poll()
        with pair() as (sender, receiver):
            receiver.watch_with(watched)
            assert watched.poll(0) == []
            assert sender.send(b"x", 0)
            assert [event for _, event in watched.poll(0)] == [select.POLLIN]
            assert receiver.receive() == b"x"
            assert watched.poll(0) == []

    def test_it_does_not_spin_after_the_sender_s_end(self) -> None:
        watched = select.poll()
        with pair() as (sender, receiver):
            receiver.watch_with(watched)
            assert sender.send(b"last", 0)
            sender.close()
            assert receiver.receive() == b"last"
            assert watched.poll(0), "the end is reported once"
            assert receiver.receive() is None
            assert watched.poll(0) == []

    def test_nothing_is_left_to_watch_after_the_receiver_s_end(self) -> None:
        watched = select.poll()
        with pair() as (sender, receiver):
            receiver.watch_with(watched)
            assert sender.send(b"unread", 0)
            receiver.close()
            assert watched.poll(0) == []  # no POLLNVAL either
            left, right = net.socketpair()
            with left, right:  # one of them has the number of the one that was closed
                right.send(b"x")
                left.send(b"x")
                assert watched.poll(0) == []


class TestAccess:
    @needs_root
    def test_another_user_is_disconnected_and_the_receiver_is_accepted(self) -> None:
        with (
            closing(UnixSocketSender()) as sender,
            stranger(connects_and_gets_nothing, sender.offer),
            closing(UnixSocketReceiver(sender.offer)) as receiver,
        ):
            assert sender.send(b"secret", 0)
            assert sender.send(b"another", 0)
            assert [receiver.receive(), receiver.receive()] == [b"secret", b"another"]

    @needs_root
    def test_another_user_alone_gets_nothing(self) -> None:
        with closing(UnixSocketSender()) as sender, stranger(connects_and_gets_nothing, sender.offer):
            assert not sender.send(b"secret", 0)

    @needs_root
    def test_a_socket_of_another_user_is_not_trusted(self) -> None:
        offer = secrets.token_hex(16)
        with stranger(pretends_and_gets_nothing, offer):
            before = open_descriptors()
            with pytest.raises(WireError, match="another user's"):
                UnixSocketReceiver(offer)
            assert open_descriptors() == before

    @pytest.mark.parametrize("offer", ["", "0" * 32, "x" * 500, "\ud800", "\0", "../../tmp"])
    def test_an_offer_that_leads_nowhere_is_refused(self, offer: str) -> None:
        before = open_descriptors()
        with pytest.raises(WireError, match="cannot be reached"):
            UnixSocketReceiver(offer)
        assert open_descriptors() == before

    def test_an_offer_is_good_as_long_as_its_sender(self) -> None:
        sender = UnixSocketSender()
        sender.close()
        with pytest.raises(WireError, match="cannot be reached"):
            UnixSocketReceiver(sender.offer)

    def test_a_receiver_of_another_namespace_is_offered_nothing(self) -> None:
        place = this_namespace()
        assert place is not None
        system, namespace, user = place.split(":")
        for other in ("", f"{system}:{namespace}:{int(user) + 1}", f"{system}:1:{user}", f"x:{namespace}:{user}"):
            outbound = Outbound({NAME: other}, AdaptiveCompression(WireCodec.NONE), lambda: None)
            assert (outbound.unix_socket, outbound.offers) == (None, {})

    def test_a_receiver_that_cannot_connect_reports_why_and_continues(self) -> None:
        inbound = Inbound(Limits())
        why = inbound.begin({NAME: "0" * 32})
        assert why is not None
        assert "cannot be reached" in why
        assert inbound.unix_socket is None

    def test_the_overflow_user_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a user namespace all users that it does not map have the same uid."""
        monkeypatch.setattr(os, "geteuid", lambda: int(Path("/proc/sys/kernel/overflowuid").read_text()))
        assert this_namespace() is None


class TestCleanUp:
    def test_no_descriptor_is_left_open(self) -> None:
        before = open_descriptors()
        with closing(UnixSocketSender()):
            pass
        with pair() as (sender, _receiver):
            pass
        with pair() as (sender, receiver):
            assert sender.send(b"unread", 0)
        with pair() as (sender, receiver):
            receiver.close()
            sender.send(b"x", 0)
            assert open_descriptors() == before, "a sender without a receiver keeps nothing"
        with pair() as (sender, receiver):
            sender.send(b"x", 0)
            sender.close()
            assert list(iter(receiver.receive, None)) == [b"x"]
            assert open_descriptors() == before, "nor does a receiver that has come to the end"
        assert open_descriptors() == before

    def test_no_descriptor_is_left_open_when_the_address_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(UnixSocketSender()) as sender:
            monkeypatch.setattr(secrets, "token_hex", lambda _: sender.offer)
            before = open_descriptors()
            with pytest.raises(OSError, match="in use"):
                UnixSocketSender()
            assert open_descriptors() == before
            outbound = Outbound({NAME: this_namespace() or ""}, AdaptiveCompression(WireCodec.NONE), lambda: None)
            assert (outbound.unix_socket, outbound.offers) == (None, {})

    def test_the_address_is_released_with_the_sender(self) -> None:
        with pair() as (sender, _receiver):
            assert is_bound(sender)
        assert not is_bound(sender)
