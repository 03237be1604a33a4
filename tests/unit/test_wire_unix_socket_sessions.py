# SPDX-License-Identifier: Apache-2.0
"""Each session has its own Unix socket, whose messages are lost only with their sender."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from links import SOON_S, is_bound, receive_number, send_number, wait_until
from unix_links import (
    open_unix_socket,
    send_small,
    unix_sockets,
)

from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, PeerLost, Window
from zpptool.wire.local.unix_socket import this_namespace

pytestmark = [
    pytest.mark.skipif(this_namespace() is None, reason="this system has no abstract Unix sockets"),
    pytest.mark.timeout(60),
]


class TestSessions:
    def test_a_new_epoch_has_its_own_unix_socket(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        open_unix_socket(sender, receiver)
        old = unix_sockets(sender, receiver)
        assert old[0] is not None
        assert old[1] is not None
        sender.begin(sender.party.run_id, 1)
        wait_until(lambda: not is_bound(old[0]))
        assert not old[0].send(b"stale", 100)
        open_unix_socket(sender, receiver)
        new = unix_sockets(sender, receiver)
        assert None not in new
        assert set(old).isdisjoint(new)
        assert send_small(sender, 1)
        assert old[1].receive() is None
        message = receiver.recv(SOON_S)
        assert (message.header, message.epoch, message.sequence) == (b"1", 1, 1)

    def test_messages_of_an_epoch_never_arrive_after_those_of_the_next(
        self, sender: LinkSender, receiver: LinkReceiver
    ) -> None:
        open_unix_socket(sender, receiver)
        assert [send_small(sender, number) for number in (1, 2)] == [True, True]
        sender.begin(sender.party.run_id, 1)
        send_number(sender, 3)
        got = [receiver.recv(SOON_S) for _ in range(3)]
        assert [(message.header, message.epoch, message.sequence) for message in got] == [
            (b"1", 0, 1), (b"2", 0, 2), (b"3", 1, 0),
        ]  # fmt: skip
        assert not receiver.poll(0.05)

    def test_no_message_is_lost_or_repeated_in_many_epochs(self, sender: LinkSender, receiver: LinkReceiver) -> None:
        chance = random.Random(3)
        sent: list[tuple[int, int]] = []
        got: list[tuple[int, int]] = []
        short = 0
        for epoch in range(1, 60):
            sender.begin(sender.party.run_id, epoch)
            for number in range(chance.randrange(4)):
                short += send_small(sender, number)
                sent.append((epoch, number))
                for _ in range(chance.randrange(3) if len(got) < len(sent) - 1 else chance.randrange(2)):
                    message = receiver.recv(SOON_S)
                    got.append((message.epoch, message.sequence))
                if len(got) == len(sent):
                    wait_until(lambda: sender.queue == 0)
        while len(got) < len(sent):
            message = receiver.recv(SOON_S)
            got.append((message.epoch, message.sequence))
        assert got == sent
        assert not receiver.poll(0.05)
        assert 0 < short < len(sent)

    def test_a_receiver_that_reconnects_gets_a_new_one_and_nothing_stale(self, sender: LinkSender) -> None:
        for epoch in range(5):
            sender.begin(sender.party.run_id, epoch)
            with LinkReceiver(sender.endpoint, stage=1, peer=0, options=LinkOptions(window=Window(4))) as receiver:
                open_unix_socket(sender, receiver, 10 * epoch)
                assert send_small(sender, 10 * epoch + 1)
                assert receive_number(receiver) == 10 * epoch + 1
                assert send_small(sender, 10 * epoch + 2)
            wait_until(lambda: not sender.connected)  # the last one was never read

    def test_a_closed_receiver_is_lost_to_the_sender(self, sender: LinkSender) -> None:
        with LinkReceiver(sender.endpoint, stage=1, peer=0, options=LinkOptions(window=Window(4))) as receiver:
            open_unix_socket(sender, receiver)
            assert send_small(sender, 1)
            mine, _ = unix_sockets(sender, receiver)
            assert mine is not None
        wait_until(lambda: sender.state == "lost")
        assert not is_bound(mine)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1"):
            send_number(sender, 2)


KILLED = """
import os, signal, sys, time
from zpptool.wire.link import LinkOptions, LinkSender, Window
sender = LinkSender(sys.argv[1], stage=0, peer=1, options=LinkOptions(window=Window(4)))
print(sender.endpoint, flush=True)
sender.send(2, b"0", timeout_s=30)
while sender.queue:
    time.sleep(0.001)
sys.stdin.readline()
for number in range(1, 5):
    sender.send(2, b"%d" % number, [bytes(1000)], timeout_s=30)
print(sender._admission.session.outbound.unix_socket._not_before, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_messages_of_a_killed_sender_are_read_before_it_is_lost(address: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            with LinkReceiver(
                process.stdout.readline().strip(), stage=1, peer=0, options=LinkOptions(window=Window(4))
            ) as receiver:
                assert receive_number(receiver) == 0
                out, _ = process.communicate("go\n", timeout=30)
                assert (int(out) <= 1, process.returncode) == (True, -signal.SIGKILL), (
                    "they were sent by the Unix socket"
                )
                assert [receive_number(receiver) for _ in range(3)] == [1, 2, 3]
                wait_until(lambda: receiver.state == "lost")
                assert receive_number(receiver) == 4
                for _ in range(2):
                    with pytest.raises(PeerLost, match="stage 1 has lost stage 0"):
                        receiver.recv(SOON_S)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
