# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on a link raises an error that names it, and does not affect other links."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
import zmq
from links import SOON_S, receive_number, send_number, wait_until

from zpptool.wire.link import (
    LinkOptions,
    LinkReceiver,
    LinkRefused,
    LinkSender,
    LinkTimeout,
    Party,
    PeerLost,
    SequenceError,
    StaleEpoch,
    Window,
)
from zpptool.wire.message.framing import Kind, Limits, WireError, encode
from zpptool.wire.protocol.link_messages import Welcome, encode_link_message


class TestFaults:
    def test_a_lost_message_is_reported_and_the_link_continues(self, sender, receiver):
        send_number(sender, 0)
        receive_number(receiver)
        sender._admission.credit.sent += 2  # as if two messages had been lost
        send_number(sender, 3)
        with pytest.raises(SequenceError) as caught:
            receiver.recv(SOON_S)
        error = caught.value
        assert (error.expected, error.got, error.received.header) == (1, 3, b"3")
        assert (error.stage, error.peer, error.endpoint) == (1, "stage 0", receiver.endpoint)
        assert f"Stage 1 expected message 1 of stage 0 ({receiver.endpoint}) and got 3" in error.message
        send_number(sender, 4)
        assert receive_number(receiver) == 4

    def test_a_second_receiver_is_refused_with_a_reason_and_without_effect(self, sender, receiver):
        send_number(sender, 0)
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as second:
            with pytest.raises(
                LinkRefused, match=r"stage 0 refuses this link .*another stage 1 is connected"
            ) as caught:
                second.recv(SOON_S)
            assert (caught.value.stage, caught.value.peer, caught.value.state) == (1, "stage 0", "refused")
            send_number(sender, 1)
            assert not second.connected
        assert sender.refused == 1
        assert [receive_number(receiver), receive_number(receiver)] == [0, 1]

    def test_a_receiver_that_is_lost_comes_back_in_a_new_epoch_only(self, sender):
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as first:
            send_number(sender, 0)
            receive_number(first)
        wait_until(lambda: sender.state == "lost")
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as second:
            with pytest.raises(PeerLost) as lost:
                send_number(sender, 1)
            assert (lost.value.epoch, lost.value.sequence, lost.value.state) == (0, 0, "lost")
            with pytest.raises(LinkTimeout, match="the link of epoch 0 was lost; another epoch has to begin"):
                second.recv(0.3)
            sender.begin(sender.party.run_id, 1)
            send_number(sender, 2)
            message = second.recv(SOON_S)
        assert (message.header, message.epoch, message.sequence) == (b"2", 1, 0)

    def test_a_receiver_that_takes_another_s_place_gets_every_message_from_then_on(self, sender):
        for number in range(40):
            sender.begin(sender.party.run_id, number)
            with LinkReceiver(sender.endpoint, stage=1, peer=0) as receiver:
                send_number(sender, number)
                assert receive_number(receiver) == number
            wait_until(lambda: not sender.connected)

    def test_a_receiver_that_goes_before_it_was_sent_anything_may_be_replaced(self, sender):
        with LinkReceiver(sender.endpoint, stage=1, peer=0):
            wait_until(lambda: sender.connected)
        wait_until(lambda: sender.state == "waiting")
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as second:
            send_number(sender, 0)
            assert receive_number(second) == 0

    def test_both_sides_go_on_from_zero_when_a_new_epoch_begins(self, sender, receiver):
        welcomed: list[tuple[str, int]] = []
        receiver.on_welcome(lambda run, epoch: welcomed.append((run, epoch)))
        send_number(sender, 0)
        send_number(sender, 1)
        sender.begin(sender.party.run_id, 7)
        sender.begin(sender.party.run_id, 6)
        send_number(sender, 2)
        got = [receiver.recv(SOON_S) for _ in range(3)]
        assert [(message.epoch, message.sequence) for message in got] == [(0, 0), (0, 1), (7, 0)]
        assert welcomed[-1] == (sender.party.run_id, 7)
        with pytest.raises(StaleEpoch, match="message of epoch 0 is not for stage 1"):
            sender.relay(got[0], SOON_S)

    def test_a_restarted_sender_is_another_run(self, sender, receiver):
        send_number(sender, 0)
        receive_number(receiver)
        sender.close()
        wait_until(lambda: receiver.state == "lost")
        with pytest.raises(PeerLost, match="stage 1 has lost stage 0"):
            receiver.recv(SOON_S)
        with LinkSender(sender.endpoint, stage=0, peer=1) as reborn:
            wait_until(lambda: receiver.poll(0) and receiver.state == "refused")
            with pytest.raises(LinkRefused, match=r"stage 1 belongs to run \w+, stage 0 to"):
                receiver.recv(SOON_S)
            with pytest.raises(LinkTimeout, match=r"a receiver was refused: stage 1 belongs to run"):
                send_number(reborn, 1, timeout_s=0.1)

    def test_what_is_no_message_is_refused_and_the_link_goes_on(self):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as hostile:
            port = hostile.bind_to_random_port("tcp://127.0.0.1")
            with LinkReceiver(f"tcp://127.0.0.1:{port}", stage=1, peer=0) as receiver:
                guest = hostile.recv_multipart()[0]
                for parts in ([b""], [b"\x80\x04pickle"], [os.urandom(5000)], [b"x"] * 3000):
                    hostile.send_multipart([guest, *parts])
                    with pytest.raises(WireError, match="Stage 1 refused a message from stage 0") as caught:
                        receiver.recv(SOON_S)
                    assert caught.value.endpoint == receiver.endpoint
                early = encode(Kind.CONTROL, b"5", [], source=0, epoch=0, sequence=0, session=1)
                hostile.send_multipart([guest, *early])
                with pytest.raises(WireError, match="it came before a welcome"):
                    receiver.recv(SOON_S)
                welcome = encode_link_message(Welcome(Party(0, run_id="a run"), Window(), {}))
                hello = encode(Kind.LINK, welcome, [], source=0, epoch=0, sequence=0, session=1)
                hostile.send_multipart([guest, *hello])
                hostile.send_multipart([guest, *early])
                assert receive_number(receiver) == 5
            hostile.close(linger=0)

    def test_a_frame_beyond_the_limit_ends_the_connection(self):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as hostile:
            port = hostile.bind_to_random_port("tcp://127.0.0.1")
            limits = Limits(max_frame_bytes=1000, max_header_bytes=1000)
            with LinkReceiver(
                f"tcp://127.0.0.1:{port}", stage=1, peer=0, options=LinkOptions(limits=limits)
            ) as receiver:
                hostile.send_multipart([hostile.recv_multipart()[0], bytes(10_000_000)])
                with pytest.raises(LinkTimeout):
                    receiver.recv(0.5)
            hostile.close(linger=0)

    def test_a_sender_refuses_what_the_receiver_would_not_take(self):
        limits = Limits(max_frame_bytes=1000)
        with (
            LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=LinkOptions(limits=limits)) as sender,
            pytest.raises(WireError, match="frame 0 has 1001 bytes"),
        ):
            send_number(sender, 0, bytes(1001))

    def test_a_port_scan_is_no_peer(self, sender, receiver):
        wait_until(lambda: sender.connected)
        host, port = sender.endpoint.removeprefix("tcp://").split(":")
        for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03garbage"):
            with socket.create_connection((host, int(port))) as scan:
                scan.sendall(greeting)
        time.sleep(0.2)
        assert sender.connected
        send_number(sender, 0)
        assert receive_number(receiver) == 0

    def test_a_peer_that_goes_away_inside_a_message_spoils_no_other_one(self, sender):
        for epoch in range(5):
            sender.begin(sender.party.run_id, epoch)
            self.send_while_the_peer_goes(sender)
        sender.begin(sender.party.run_id, 5)
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as second:
            send_number(sender, 99, b"d", b"e")
            message = second.recv(SOON_S)
        assert message.header == b"99"
        assert [bytes(frame) for frame in message.frames] == [b"d", b"e"]

    def send_while_the_peer_goes(self, sender: LinkSender) -> None:
        """Send three frames while the peer goes away after the first."""
        peer = LinkReceiver(sender.endpoint, stage=1, peer=0)
        wait_until(lambda: sender.connected)
        socket = sender._socket

        class EndsThePeerAfterOneFrame:
            def __getattr__(self, name: str) -> object:
                return getattr(socket, name)

            def send(self, *args: object, **options: object) -> object:
                sent = socket.send(*args, **options)
                peer.close()
                time.sleep(0.1)
                socket.get(zmq.EVENTS)
                return sent

        sender._socket = EndsThePeerAfterOneFrame()
        try:
            send_number(sender, 0, b"a", b"b", b"c")
        finally:
            sender._socket = socket
        wait_until(lambda: sender.state == "lost")

    def test_messages_stay_complete_while_receivers_reconnect(self, sender):
        stop = threading.Event()
        faults: list[Exception] = []

        def keep_sending() -> None:
            epoch, number = 0, 0
            while not stop.is_set():
                try:
                    sender.send(Kind.TENSORS, str(number).encode(), [bytes(70_000)] * 12, timeout_s=0.1)
                    number += 1
                except PeerLost:
                    epoch, number = epoch + 1, 0
                    sender.begin(sender.party.run_id, epoch)
                except LinkTimeout:
                    continue
                except Exception as error:
                    faults.append(error)

        sending = threading.Thread(target=keep_sending, daemon=True)
        sending.start()
        end = time.monotonic() + 4
        received = 0
        while time.monotonic() < end:
            with LinkReceiver(sender.endpoint, stage=1, peer=0) as receiver:
                for _ in range(received % 3 + 1):
                    message = receiver.recv(SOON_S)
                    assert [frame.nbytes for frame in message.frames] == [70_000] * 12
                    assert int(message.header) == message.sequence
                    received += 1
        stop.set()
        sending.join()
        assert not faults
        assert received > 10
