# SPDX-License-Identifier: Apache-2.0
"""Links with keys: bulk frames take the sealed channel, in order with all others, and its loss is the peer's loss."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.links import SOON_S, open_sockets, receive_number, send_number, wait_until
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, PeerLost
from zpptool.wire.message.framing import Kind
from zpptool.wire.sealed import listener as listening
from zpptool.wire.sealed.listener import GREETING_BYTES, MAX_UNKNOWN, LaneListener
from zpptool.wire.sealed.offer import LANES, NAME
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import generate, link_keys

pytestmark = pytest.mark.timeout(60)

FILES = generate(2)
MIB = 1 << 20


def options(place: int, **changes: object) -> LinkOptions:
    security = LinkSecurity(link_keys(FILES[place], place, 1 - place))
    return replace(LinkOptions(security=security, shared_memory=False), **changes)


@pytest.fixture
def sender() -> Iterator[LinkSender]:
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=options(0)) as link:
        yield link
        link.close(linger_s=0)


@pytest.fixture
def receiver(sender: LinkSender) -> Iterator[LinkReceiver]:
    with LinkReceiver(sender.endpoint, stage=1, peer=0, options=options(1)) as link:
        yield link


def lanes_of(sender: LinkSender) -> list[socket.socket]:
    """The connections of the sender's lanes."""
    session = sender._admission.session
    assert session is not None
    assert session.outbound._sealed is not None
    return list(session.outbound._sealed._connections.values())


def open_channel(sender: LinkSender, receiver: LinkReceiver) -> None:
    """Wait until the sealed channel is in use."""
    send_number(sender, 0)
    assert receive_number(receiver) == 0
    wait_until(lambda: sender.payload_channel == NAME)


def pattern(number: int, nbytes: int) -> bytes:
    return number.to_bytes(4, "little") * (nbytes // 4)


def test_bulk_frames_arrive_whole_and_in_order_with_the_others(sender: LinkSender, receiver: LinkReceiver) -> None:
    open_channel(sender, receiver)
    sizes = [3 * MIB + 4, 0, 8, 256 << 10, 5 * MIB, 4]
    sent = []
    for number in range(1, 30):
        frames = [pattern(number, size) for size in sizes[number % 3 :]] if number % 4 else []
        sent.append(frames)
        send_number(sender, number, *frames)
        if number % 7 == 0:
            time.sleep(0.01)
        if number % 5 == 0:
            while sent:
                message = receiver.recv(SOON_S)
                expected = sent.pop(0)
                assert [bytes(frame) for frame in message.frames] == expected
    for expected in sent:
        assert [bytes(frame) for frame in receiver.recv(SOON_S).frames] == expected


def test_received_frames_are_writable_and_keep_their_bytes(sender: LinkSender, receiver: LinkReceiver) -> None:
    open_channel(sender, receiver)
    kept = []
    for number in range(1, 9):
        send_number(sender, number, pattern(number, MIB))
        (frame,) = receiver.recv(SOON_S).frames
        assert not frame.readonly
        kept.append(frame)
    assert [bytes(frame[:4]) for frame in kept] == [pattern(number, 4) for number in range(1, 9)]


def test_memory_may_be_changed_when_the_wait_returns(sender: LinkSender, receiver: LinkReceiver) -> None:
    open_channel(sender, receiver)
    memory = bytearray(pattern(1, 8 * MIB))
    sent = sender.send(Kind.CONTROL, b"1", [memory], timeout_s=SOON_S)
    sent.wait(SOON_S)
    assert sent.done
    memory[:] = bytes(len(memory))
    assert bytes(receiver.recv(SOON_S).frames[0]) == pattern(1, 8 * MIB)


def test_frames_wait_in_the_network_until_they_are_received(sender: LinkSender, receiver: LinkReceiver) -> None:
    open_channel(sender, receiver)
    sent = sender.send(Kind.CONTROL, b"1", [bytes(64 * MIB)], timeout_s=SOON_S)
    time.sleep(0.2)
    assert not sent.done, "nothing has read the announcement, so the lanes are full"
    assert len(receiver.recv(SOON_S).frames[0]) == 64 * MIB
    sent.wait(SOON_S)


def in_next_epoch(sender: LinkSender, receiver: LinkReceiver, number: int) -> None:
    """Begin another epoch and send a bulk message in it, which is received."""
    sender.begin(sender.party.run_id, sender.party.epoch + 1)
    deadline = time.monotonic() + SOON_S
    while True:
        assert time.monotonic() < deadline
        with suppress(PeerLost):
            send_number(sender, number, bytes(8 * MIB))
            break
    while True:
        assert time.monotonic() < deadline
        with suppress(PeerLost):
            assert receive_number(receiver) == number
            return


@pytest.mark.parametrize("end", [socket.SHUT_RDWR, socket.SHUT_WR])
def test_a_lane_that_ends_is_the_loss_of_the_peer(sender: LinkSender, receiver: LinkReceiver, end: int) -> None:
    lost = threading.Event()
    sender.on_lost(lost.set)
    open_channel(sender, receiver)
    lanes_of(sender)[0].shutdown(end)
    with suppress(PeerLost):
        send_number(sender, 1, bytes(8 * MIB))
        with pytest.raises(PeerLost):
            receiver.recv(SOON_S)
    assert lost.wait(SOON_S)
    in_next_epoch(sender, receiver, 7)
    wait_until(lambda: sender.payload_channel == NAME)


def test_a_network_that_cuts_the_lanes_leaves_bulk_frames_under_curve(
    sender: LinkSender, receiver: LinkReceiver
) -> None:
    for number in range(3):
        open_channel(sender, receiver)
        lanes_of(sender)[0].shutdown(socket.SHUT_RDWR)
        with suppress(PeerLost):
            send_number(sender, 1, bytes(8 * MIB))
            receiver.recv(SOON_S)
        in_next_epoch(sender, receiver, number)
        sender.begin(sender.party.run_id, sender.party.epoch + 1)
    send_number(sender, 0)
    assert receive_number(receiver) == 0
    assert NAME not in sender._admission.session.outbound.offers


def test_a_new_epoch_has_a_new_channel_and_drops_what_was_on_its_way(
    sender: LinkSender, receiver: LinkReceiver
) -> None:
    open_channel(sender, receiver)
    first = {lane.getpeername() for lane in lanes_of(sender)}
    send_number(sender, 1, bytes(32 * MIB))
    sender.begin(sender.party.run_id, sender.party.epoch + 1)
    send_number(sender, 2)
    while receive_number(receiver) != 2:
        pass
    wait_until(lambda: sender.payload_channel == NAME)
    assert first.isdisjoint({lane.getpeername() for lane in lanes_of(sender)})
    send_number(sender, 3, pattern(3, 2 * MIB))
    assert bytes(receiver.recv(SOON_S).frames[0]) == pattern(3, 2 * MIB)


def test_closing_leaves_no_thread_and_no_socket() -> None:
    before, threads = open_sockets(), set(threading.enumerate())
    with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=options(0)) as sender:
        with LinkReceiver(sender.endpoint, stage=1, peer=0, options=options(1)) as receiver:
            open_channel(sender, receiver)
            send_number(sender, 1, bytes(64 * MIB))
        sender.close(linger_s=0)
    wait_until(lambda: not [thread for thread in set(threading.enumerate()) - threads if "sealed" in thread.name])
    wait_until(lambda: open_sockets() <= before)


def test_without_keys_or_with_shared_memory_there_is_no_sealed_channel() -> None:
    for changes in ({"security": LinkSecurity()}, {"shared_memory": True}):
        with (
            LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, options=options(0, **changes)) as sender,
            LinkReceiver(sender.endpoint, stage=1, peer=0, options=options(1, **changes)) as receiver,
        ):
            send_number(sender, 0, bytes(2 * MIB))
            assert receive_number(receiver) == 0
            assert NAME not in sender._admission.session.outbound.offers
            sender.close(linger_s=0)


def test_a_port_that_cannot_be_reached_leaves_bulk_frames_under_curve(
    monkeypatch: pytest.MonkeyPatch, sender: LinkSender, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: object) -> socket.socket:
        raise OSError("filtered")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr("zpptool.wire.sealed.receiver.OPEN_S", 3.2)
    with LinkReceiver(sender.endpoint, stage=1, peer=0, options=options(1)) as receiver:
        send_number(sender, 0, bytes(2 * MIB))
        assert receive_number(receiver) == 0
        assert sender.payload_channel == "socket"
        wait_until(lambda: "cannot be reached at the port of the sealed channel (filtered)" in caplog.text)


def proof(lane: int) -> bytes:
    return bytes([lane + 1]) * 32


@pytest.fixture
def accepted() -> list[int]:
    return []


@pytest.fixture
def listener(accepted: list[int]) -> Iterator[LaneListener]:
    def take(lane: int, connection: socket.socket) -> None:
        accepted.append(lane)
        connection.close()

    one = LaneListener("127.0.0.1", {lane: proof(lane) for lane in range(LANES)}, take)
    work = threading.Thread(target=one.run)
    work.start()
    yield one
    one.close()
    work.join(SOON_S)
    assert not work.is_alive()


def connect(listener: LaneListener) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", listener.port), SOON_S)
    connection.settimeout(SOON_S)
    return connection


def is_closed(connection: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


@pytest.mark.parametrize(
    "greeting", [bytes(GREETING_BYTES), b"\x00" + proof(1), b"\x09" + proof(0), b"GET / HTTP/1.1\r\n" * 5]
)
def test_a_stranger_is_turned_away(listener: LaneListener, accepted: list[int], greeting: bytes) -> None:
    with connect(listener) as stranger:
        stranger.sendall(greeting)
        assert is_closed(stranger)
    assert accepted == []


def test_a_stranger_that_sends_nothing_costs_one_descriptor_for_a_short_time(
    monkeypatch: pytest.MonkeyPatch, listener: LaneListener, accepted: list[int]
) -> None:
    monkeypatch.setattr(listening, "PROOF_DEADLINE_S", 0.5)
    before = threading.active_count()
    with connect(listener) as quiet:
        others = [connect(listener) for _ in range(3 * MAX_UNKNOWN)]
        assert is_closed(quiet)
        assert threading.active_count() == before
        for other in others:
            other.close()

    def own_lane() -> bool:
        with connect(listener) as own:
            own.sendall(b"\x01" + proof(1))
            return is_closed(own) and 1 in accepted

    wait_until(own_lane)


def test_each_lane_is_accepted_once_and_then_the_port_is_closed(listener: LaneListener, accepted: list[int]) -> None:
    for lane in (1, 1, 0):
        with connect(listener) as own:
            own.sendall(bytes([lane]))
            own.sendall(proof(lane))
            assert is_closed(own)
    assert accepted == [1, 0]

    def refused() -> bool:
        with suppress(ConnectionRefusedError):
            connect(listener).close()
            return False
        return True

    wait_until(refused)
