# SPDX-License-Identifier: Apache-2.0
"""Small messages use a Unix socket beside ZeroMQ's: complete and in order."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from links import SOON_S, open_sockets, receive_number, send_number, wait_until
from unix_links import (
    MIXED_MESSAGES,
    SIZES,
    SMALL,
    expect_frames,
    links,
    open_unix_socket,
    out_of_memory,
    send_frames,
    send_mixed_messages,
    send_small,
    sent_while_receiving,
    unix_sockets,
    used_unix_socket,
)

from zpptool.wire.link import LinkError, LinkOptions, LinkReceiver, LinkRefused, LinkSender, PeerLost, Window
from zpptool.wire.local.unix_socket import this_namespace
from zpptool.wire.message.framing import INLINE_BELOW_BYTES
from zpptool.wire.protocol.flow_control import Credit

pytestmark = [
    pytest.mark.skipif(this_namespace() is None, reason="this system has no abstract Unix sockets"),
    pytest.mark.timeout(60),
]


class TestLinks:
    def test_small_messages_use_it_once_everything_sent_before_is_acknowledged(self, address: str) -> None:
        with links(address) as (sender, receiver):
            assert not send_small(sender, 0), "the receiver had not connected to it"
            assert receive_number(receiver) == 0
            wait_until(lambda: sender.queue == 0)
            assert [send_small(sender, number) for number in (1, 2, 3)] == [True] * 3
            assert not receiver._readable(), "ZeroMQ has none of them"
            assert [receive_number(receiver) for _ in range(3)] == [1, 2, 3]

    def test_it_wakes_a_waiting_receiver(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        got: list[int] = []
        for number in (1, 2):
            waiting = threading.Thread(target=lambda: got.append(receive_number(receiver)))
            waiting.start()
            time.sleep(0.1)
            assert send_small(sender, number)
            waiting.join(SOON_S)
            wait_until(lambda: sender.queue == 0)
        assert got == [1, 2]

    def test_poll_reports_what_arrives_by_it(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        assert not receiver.poll(0.05)
        assert send_small(sender, 1)
        assert receiver.poll(SOON_S)
        assert receiver.poll(0)
        assert receive_number(receiver) == 1
        assert not receiver.poll(0.05)

    def test_a_message_sent_by_zeromq_closes_it_until_acknowledged(
        self, sender: LinkSender, receiver: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_unix_socket(sender, receiver)
        assert send_small(sender, 1)
        monkeypatch.setattr(os, "posix_fallocate", out_of_memory)
        send_number(sender, 2, bytes(3_000_000))
        assert [send_small(sender, 3), used_unix_socket(sender)] == [False, False]
        assert [receive_number(receiver) for _ in range(2)] == [1, 2]
        wait_until(lambda: sender.queue == 1)
        assert not send_small(sender, 4), "3 is not acknowledged"
        assert [receive_number(receiver) for _ in range(2)] == [3, 4]
        wait_until(lambda: sender.queue == 0)
        assert send_small(sender, 5)
        assert receive_number(receiver) == 5

    def test_tickets_of_shared_memory_use_it(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        if sender.payload_channel == "socket":
            pytest.skip("this system has no memfd")
        for number, size in enumerate((INLINE_BELOW_BYTES, 3_000_000), start=1):
            send_frames(sender, number, size, 2)
            assert used_unix_socket(sender)
            assert not receiver._readable()
            expect_frames(receiver, number, size, 2)

    def test_several_frames_use_zeromq(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        send_number(sender, 1, b"a", b"b")
        assert not used_unix_socket(sender)
        assert [bytes(frame) for frame in receiver.recv(SOON_S).frames] == [b"a", b"b"]

    def test_what_does_not_fit_uses_zeromq_in_order(self) -> None:
        with links(window=Window(500)) as (sender, receiver):
            send_number(sender, 0)
            assert receive_number(receiver) == 0
            sender.ping()  # the answer comes with an acknowledgement
            wait_until(lambda: receiver.poll(0) or sender.queue == 0)
            by_it = []
            for number in range(1, 400):
                send_number(sender, number, bytes(SMALL * (1 + number % 50)))
                by_it.append(used_unix_socket(sender))
            assert 0 < sum(by_it) < len(by_it)
            assert sorted(by_it, reverse=True) == by_it, "none uses it after one that did not"
            assert [receive_number(receiver) for _ in range(1, 400)] == list(range(1, 400))

    @pytest.mark.parametrize("scarce", [False, True])
    def test_a_zeromq_message_is_held_back_for_what_was_sent_before_it(
        self, sender: LinkSender, receiver: LinkReceiver, scarce: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_unix_socket(sender, receiver)
        if scarce:
            monkeypatch.setattr(os, "posix_fallocate", out_of_memory)
        with sent_while_receiving(receiver, monkeypatch, lambda: send_mixed_messages(sender)):
            for number, (size, count) in enumerate(MIXED_MESSAGES, start=1):
                expect_frames(receiver, number, size, count)
        assert not receiver.poll(0)

    def test_a_welcome_is_held_back_for_what_the_last_epoch_sent(
        self, sender: LinkSender, receiver: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def send_and_begin() -> None:
            assert send_small(sender, 1)
            sender.begin(sender.party.run_id, 1)
            wait_until(receiver._readable)

        open_unix_socket(sender, receiver)
        with sent_while_receiving(receiver, monkeypatch, send_and_begin):
            assert receive_number(receiver) == 1
        assert receiver.party.epoch == 0
        open_unix_socket(sender, receiver)
        assert receiver.party.epoch == 1

    @pytest.mark.parametrize(("sender_shares", "shares"), [(False, True), (True, False), (False, False)])
    def test_it_is_not_used_unless_both_sides_share(self, address: str, sender_shares: bool, shares: bool) -> None:
        with links(address, sender_shares=sender_shares, shares=shares) as (sender, receiver):
            open_unix_socket(sender, receiver)
            assert not send_small(sender, 1)
            assert receive_number(receiver) == 1
            assert unix_sockets(sender, receiver) == (None, None)

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(
            st.tuples(st.one_of(st.sampled_from(SIZES), st.integers(0, 100_000)), st.integers(1, 2), st.integers(0, 4)),
            max_size=25,
        ),
        st.sampled_from((Window(2), Window(5), Window(9, 1 << 20))),
        st.booleans(),
    )
    def test_any_mix_arrives_complete_and_in_order(
        self, steps: list[tuple[int, int, int]], window: Window, scarce: bool
    ) -> None:
        with pytest.MonkeyPatch.context() as patch, links(window=window) as (sender, receiver):
            if scarce:
                patch.setattr(os, "posix_fallocate", out_of_memory)
            sent: list[tuple[int, int]] = []
            due = 0
            for size, count, reads in steps:
                while not sender._admission.credit.allows(size * count + 2) and due < len(sent):
                    expect_frames(receiver, due, *sent[due])
                    due += 1
                    if not receiver.poll(0):
                        time.sleep(0.001)
                send_frames(sender, len(sent), size, count)
                sent.append((size, count))
                for _ in range(min(reads, len(sent) - due)):
                    expect_frames(receiver, due, *sent[due])
                    due += 1
            for number in range(due, len(sent)):
                expect_frames(receiver, number, *sent[number])
            assert not receiver.poll(0)

    @pytest.mark.parametrize("scarce", [False, True])
    def test_a_reader_of_varying_speed_gets_everything_in_order(
        self, address: str, scarce: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if scarce:
            monkeypatch.setattr(os, "posix_fallocate", out_of_memory)
        chance = random.Random(7)
        plan = [
            (chance.choice(SIZES), chance.randint(1, 2)) if chance.random() < 0.1 else (chance.randrange(2000), 1)
            for _ in range(500)
        ]
        pauses = [chance.choice((0, 0, 0, 0.0005, 0.003)) for _ in plan]
        faults: list[BaseException] = []

        def read() -> None:
            try:
                for number, (pause, planned) in enumerate(zip(pauses, plan, strict=True)):
                    expect_frames(receiver, number, *planned)
                    time.sleep(pause)
            except BaseException as error:
                faults.append(error)

        with links(address, window=Window(6, 4 << 20)) as (sender, receiver):
            reader = threading.Thread(target=read)
            reader.start()
            ways = []
            for number, planned in enumerate(plan):
                send_frames(sender, number, *planned)
                ways.append(used_unix_socket(sender))
                if chance.random() < 0.1:
                    with suppress(AssertionError):  # it need not catch up, nor acknowledge the last one
                        wait_until(lambda: sender.queue <= 1, within_s=0.1)
            reader.join(SOON_S)
            assert not reader.is_alive()
            assert not faults
            assert not receiver.poll(0)
        changes = sum(before != after for before, after in pairwise(ways))
        assert changes > 10, "both were used in turns"

    def test_many_threads_may_send_and_receive(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        got: list[int] = []
        readers = [
            threading.Thread(
                target=lambda: got.extend(receive_number(receiver) for _ in range(100))
            )  # a false gap would raise
            for _ in range(3)
        ]
        writers = [
            threading.Thread(target=lambda base=base: [send_small(sender, base + number) for number in range(100)])
            for base in (0, 100, 200)
        ]
        for thread in (*readers, *writers):
            thread.start()
        for thread in (*readers, *writers):
            thread.join(SOON_S)
        assert sorted(got) == list(range(300))

    def test_no_socket_is_left_open(self) -> None:
        before, kept = open_sockets(), []
        for _ in range(5):
            with links() as (sender, receiver):
                for epoch in range(3):
                    sender.begin(sender.party.run_id, epoch)
                    open_unix_socket(sender, receiver)
                    assert send_small(sender, 1)
                    kept.append(unix_sockets(sender, receiver))  # keeps them from being closed by the garbage collector
                    if epoch < 2:
                        assert receive_number(receiver) == 1
            wait_until(lambda: open_sockets() <= before)

    def test_waiting_takes_no_time_after_the_session_has_ended(
        self, sender: LinkSender, receiver: LinkReceiver
    ) -> None:
        open_unix_socket(sender, receiver)
        mine, _ = unix_sockets(sender, receiver)
        assert mine is not None
        mine.close()
        began = time.process_time()
        assert not receiver.poll(0.5)
        assert time.process_time() - began < 0.2
        assert not send_small(sender, 1), "it is closed, ZeroMQ is not"
        assert receive_number(receiver) == 1

    def test_an_interrupt_after_the_send_closes_the_link(
        self, sender: LinkSender, receiver: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the next message would have the same number."""
        open_unix_socket(sender, receiver)

        def interrupt(_credit: Credit, _nbytes: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Credit, "spend", interrupt)
        with pytest.raises(KeyboardInterrupt):
            send_number(sender, 1)
        monkeypatch.undo()
        with pytest.raises(LinkError, match="closed"):
            send_number(sender, 2)
        assert receive_number(receiver) == 1
        with pytest.raises(PeerLost):
            receive_number(receiver)

    def test_a_move_drops_what_the_previous_sender_sent(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        assert send_small(sender, 1)
        with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=LinkOptions(party=sender.party)) as other:
            receiver.move(other.endpoint)
            with pytest.raises((LinkRefused, PeerLost)):
                receive_number(receiver)
