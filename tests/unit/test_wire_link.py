# SPDX-License-Identifier: Apache-2.0
"""A link delivers whole messages once and in order, or says within its deadline who failed; it never hangs or grows."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psutil
import pytest
import zmq

from zpptool.errors import ExitCode, ZppError
from zpptool.wire.errors import HEAD
from zpptool.wire.link import (
    ZERO_COPY_BYTES,
    LinkError,
    LinkRefused,
    LinkTimeout,
    Party,
    PeerLost,
    PullLink,
    PushLink,
    SequenceError,
    StaleEpoch,
    Window,
)
from zpptool.wire.messages import Kind, Limits, WireError, encode
from zpptool.wire.words import Welcome, encode_word

SPAWN = multiprocessing.get_context("spawn")
SOON_S = 10.0


@pytest.fixture
def push() -> Iterator[PushLink]:
    """Stage 0's sending end on a free port."""
    with PushLink("tcp://127.0.0.1:*", stage=0, peer=1, window=Window(4)) as link:
        yield link
        link.close(linger_s=0)


@pytest.fixture
def pull(push: PushLink) -> Iterator[PullLink]:
    """Stage 1's receiving end of it."""
    with PullLink(push.endpoint, stage=1, peer=0, window=Window(4)) as link:
        yield link


def wait_until(condition, within_s: float = SOON_S) -> None:
    """Fail when the condition does not come true."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def send(link: PushLink, number: int, *frames: bytes, timeout_s: float = SOON_S) -> None:
    """A message that says its number."""
    link.send(Kind.CONTROL, str(number).encode(), frames, timeout_s=timeout_s)


def fill(link: PushLink, timeout_s: float) -> tuple[int, LinkTimeout]:
    """Send 4 MB messages until one is not taken in time: how many were, and what the next one raised."""
    for accepted in range(1000):
        try:
            send(link, accepted, bytes(4_000_000), timeout_s=timeout_s)
        except LinkTimeout as error:
            return accepted, error
    raise AssertionError("the link took 4 GB that nobody read")


def receive(link: PullLink) -> int:
    """The number of the next message."""
    return int(link.recv(SOON_S).header)


class TestDelivery:
    def test_a_message_arrives_whole(self, push, pull):
        push.begin(push.party.run_id, 9)
        push.send(Kind.TENSORS, b"header", [b"", b"small", b"x" * 300_000], source=HEAD, timeout_s=SOON_S)
        message = pull.recv(SOON_S)
        assert (message.kind, message.header, message.source, message.epoch) == (Kind.TENSORS, b"header", HEAD, 9)
        assert [bytes(frame) for frame in message.frames] == [b"", b"small", b"x" * 300_000]

    def test_the_source_is_the_link_s_own_place_unless_told(self, push, pull):
        send(push, 0)
        assert pull.recv(SOON_S).source == 0

    def test_numbers_count_from_zero_in_one_session(self, push, pull):
        for number in range(3):
            send(push, number)
        messages = [pull.recv(SOON_S) for _ in range(3)]
        assert [message.sequence for message in messages] == [0, 1, 2]
        assert len({message.session for message in messages}) == 1

    def test_a_relay_keeps_source_and_epoch_and_counts_for_itself(self, push, pull):
        push.send(Kind.TENSORS, b"a", [b"x"], timeout_s=SOON_S)
        push.send(Kind.TENSORS, b"b", [b"y" * ZERO_COPY_BYTES, b"z"], source=HEAD, timeout_s=SOON_S)
        pull.recv(SOON_S)
        with (
            PushLink("tcp://127.0.0.1:*", stage=1, peer=2) as onward,
            PullLink(onward.endpoint, stage=2, peer=1) as end,
        ):
            onward.relay(pull.recv(SOON_S), SOON_S)
            message = end.recv(SOON_S)
        assert (message.header, message.source, message.epoch, message.sequence) == (b"b", HEAD, 0, 0)
        assert [bytes(frame) for frame in message.frames] == [b"y" * ZERO_COPY_BYTES, b"z"]

    def test_poll_tells_whether_a_message_is_there(self, push, pull):
        assert not pull.poll(0.05)
        send(push, 0)
        assert pull.poll(SOON_S)
        assert pull.poll(0)
        assert receive(pull) == 0
        assert not pull.poll(0)

    def test_many_threads_may_send(self, push, pull):
        threads = [
            threading.Thread(target=lambda base=base: [send(push, base + number) for number in range(50)])
            for base in range(0, 400, 100)
        ]
        for thread in threads:
            thread.start()
        got = [receive(pull) for _ in range(200)]
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(base + number for base in range(0, 400, 100) for number in range(50))

    def test_many_threads_may_receive(self, push, pull):
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda: got.extend(receive(pull) for _ in range(50)))  # a false gap would raise
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for number in range(200):
            send(push, number)
        for thread in threads:
            thread.join()
        assert sorted(got) == list(range(200))

    @pytest.mark.parametrize("size", [0, 100_000, 30_000_000])
    def test_what_was_sent_before_close_arrives_after_it(self, push, pull, size):
        wait_until(lambda: push.connected)
        send(push, 1, bytes(size))
        push.close()
        wait_until(lambda: not pull.connected)
        assert receive(pull) == 1


class TestMemory:
    def test_small_frames_may_be_changed_at_once(self, push, pull):
        memory = bytearray(b"a" * (ZERO_COPY_BYTES - 1))
        sent = push.send(Kind.TENSORS, b"", [memory, memory], timeout_s=SOON_S)
        assert sent.done
        memory[:] = b"b" * len(memory)
        assert set(bytes(pull.recv(SOON_S).frames[0])) == {ord("a")}

    def test_large_frames_may_be_changed_after_wait(self, push, pull):
        for _ in range(5):
            memory = bytearray(b"a" * (8 * ZERO_COPY_BYTES))
            push.send(Kind.TENSORS, b"", [memory], timeout_s=SOON_S).wait(SOON_S)
            memory[:] = b"b" * len(memory)
            assert bytes(pull.recv(SOON_S).frames[0]).count(b"a") == len(memory)

    def test_large_frames_outlive_the_caller_s_reference(self, push, pull):
        for number in range(4):
            push.send(Kind.TENSORS, b"", [bytes([number]) * (2 * ZERO_COPY_BYTES)], timeout_s=SOON_S)
        gc.collect()
        assert [pull.recv(SOON_S).frames[0][-1] for _ in range(4)] == [0, 1, 2, 3]

    def test_a_stalled_receiver_bounds_what_is_accepted(self, push, pull):
        wait_until(lambda: push.connected)
        accepted, error = fill(push, timeout_s=0.3)
        assert accepted == 4
        assert f"to take message {accepted}; it is connected" in error.message
        assert [receive(pull) for _ in range(accepted)] == list(range(accepted))
        send(push, accepted)
        assert receive(pull) == accepted


class TestDeadlines:
    def test_a_send_without_receiver_times_out_and_sends_nothing(self, push):
        began = time.monotonic()
        with pytest.raises(LinkTimeout) as caught:
            send(push, 1, timeout_s=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        error = caught.value
        assert (error.stage, error.peer, error.endpoint, error.exit_code) == (
            0,
            "stage 1",
            push.endpoint,
            ExitCode.STAGE,
        )
        assert error.message.startswith(f"Stage 0 waited 0.2 s for stage 1 ({push.endpoint}) to take message 0")
        assert "it is not connected" in error.message
        with PullLink(push.endpoint, stage=1, peer=0) as late:
            send(push, 2)
            assert receive(late) == 2
            assert not late.poll(0.05)

    def test_a_receive_from_nobody_times_out(self):
        with PullLink("tcp://127.0.0.1:9", stage=HEAD, peer=2) as link, pytest.raises(LinkTimeout) as caught:
            link.recv(0.2)
        assert caught.value.message.startswith("Head waited 0.2 s for stage 2 (tcp://127.0.0.1:9) to send message 0")
        assert "it is not connected" in caught.value.message
        assert "Is stage 2 running" in str(caught.value.hint)

    def test_a_receive_from_a_silent_sender_says_that_it_is_connected(self, push, pull):
        send(push, 0)
        receive(pull)
        with pytest.raises(LinkTimeout, match=r"to send message 1; it is connected"):
            pull.recv(0.05)

    def test_a_second_thread_waits_no_longer_than_its_own_deadline(self, push):
        def first_call() -> None:
            with pytest.raises(LinkTimeout, match="not connected"):
                send(push, 0, timeout_s=1.0)

        first = threading.Thread(target=first_call)
        first.start()
        time.sleep(0.1)
        with pytest.raises(LinkTimeout, match="another thread's call"):
            send(push, 1, timeout_s=0.1)
        first.join()

    @pytest.mark.parametrize("timeout_s", [-1.0, float("inf"), float("nan")])
    def test_there_is_no_wait_without_a_deadline(self, push, timeout_s):
        with pytest.raises(ZppError, match="finite"):
            send(push, 0, timeout_s=timeout_s)


class TestClosing:
    def test_closing_twice_is_no_fault_and_use_afterwards_is(self, push, pull):
        push.close()
        push.close()
        with pytest.raises(LinkError, match="is closed"):
            send(push, 0)
        pull.close()
        with pytest.raises(LinkError, match="is closed"):
            pull.poll(0)

    @pytest.mark.parametrize("waiting", ["recv", "poll", "send"])
    def test_closing_wakes_a_waiting_thread(self, push, waiting):
        raised: list[LinkError] = []

        def wait() -> None:
            with pytest.raises(LinkError) as caught:
                calls[waiting]()
            raised.append(caught.value)

        with PullLink("tcp://127.0.0.1:9", stage=1, peer=0) as pull:
            calls = {
                "recv": lambda: pull.recv(60),
                "poll": lambda: pull.poll(60),
                "send": lambda: send(push, 0, timeout_s=60),
            }
            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.2)
            began = time.monotonic()
            (push if waiting == "send" else pull).close()
            thread.join(SOON_S)
        assert time.monotonic() - began < 3
        assert "was closed while waiting" in raised[0].message

    def test_closing_with_a_stalled_peer_takes_no_longer_than_the_linger(self, push, pull):
        wait_until(lambda: push.connected)
        fill(push, timeout_s=0.2)
        began = time.monotonic()
        push.close(linger_s=0.5)
        assert time.monotonic() - began < 2

    def test_closing_from_a_signal_handler_ends_the_call_it_interrupted(self, pull):
        old = signal.signal(signal.SIGALRM, lambda *_: pull.close())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        try:
            with pytest.raises(LinkError, match="closed"):
                pull.recv(60)
        finally:
            signal.signal(signal.SIGALRM, old)
        assert time.monotonic() - began < 2

    def test_an_interrupt_leaves_the_link_usable(self, push, pull):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                pull.recv(60)
        finally:
            signal.signal(signal.SIGALRM, old)
        send(push, 3)
        assert receive(pull) == 3

    def test_a_forked_child_does_not_touch_its_parent_s_link(self, push, pull):
        child = os.fork()
        if child == 0:
            try:
                push.close()
                send(push, 0, timeout_s=1)
            except LinkError as error:
                os._exit(0 if "belongs to process" in error.message else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        send(push, 7)
        assert receive(pull) == 7

    def test_threads_and_sockets_of_closed_and_of_dropped_links_are_gone(self):
        def leave(close: bool) -> None:
            link = PushLink("tcp://127.0.0.1:*", stage=0, peer=1)
            if close:
                link.close()

        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for close in (True, False):
            for _ in range(5):
                leave(close)
            gc.collect()
            wait_until(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before)

    def test_a_process_ends_though_it_forgot_to_close(self):
        code = (
            "from zpptool.wire.link import *\n"
            "push = PushLink('tcp://127.0.0.1:*', stage=0, peer=1)\n"
            "pull = PullLink(push.endpoint, stage=1, peer=0)\n"
            "push.send(2, b'', [bytes(4_000_000)], timeout_s=5)\n"
        )
        # Many side by side: before the links were closed at exit, a quarter of them died of memory freed too early.
        started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(16)]
        try:
            ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
        finally:
            for process in started:
                process.kill()
        assert ended == [("", 0)] * len(started)


class TestFaults:
    def test_a_lost_message_is_told_and_the_link_goes_on(self, push, pull):
        send(push, 0)
        receive(pull)
        push._credit.sent += 2  # as if two had been lost on the way
        send(push, 3)
        with pytest.raises(SequenceError) as caught:
            pull.recv(SOON_S)
        error = caught.value
        assert (error.expected, error.got, error.received.header) == (1, 3, b"3")
        assert (error.stage, error.peer, error.endpoint) == (1, "stage 0", pull.endpoint)
        assert f"Stage 1 expected message 1 of stage 0 ({pull.endpoint}) and got 3" in error.message
        send(push, 4)
        assert receive(pull) == 4

    def test_a_second_receiver_is_refused_in_words_and_disturbs_nobody(self, push, pull):
        send(push, 0)
        with PullLink(push.endpoint, stage=1, peer=0) as second:
            with pytest.raises(
                LinkRefused, match=r"stage 0 refuses this link .*another stage 1 is connected"
            ) as caught:
                second.recv(SOON_S)
            assert (caught.value.stage, caught.value.peer, caught.value.state) == (1, "stage 0", "refused")
            send(push, 1)
            assert not second.connected
        assert push.refused == 1
        assert [receive(pull), receive(pull)] == [0, 1]

    def test_a_receiver_that_is_lost_comes_back_in_a_new_epoch_only(self, push):
        with PullLink(push.endpoint, stage=1, peer=0) as first:
            send(push, 0)
            receive(first)
        wait_until(lambda: push.state == "lost")
        with PullLink(push.endpoint, stage=1, peer=0) as second:
            with pytest.raises(PeerLost) as lost:
                send(push, 1)
            assert (lost.value.epoch, lost.value.sequence, lost.value.state) == (0, 0, "lost")
            with pytest.raises(LinkTimeout, match="the link of epoch 0 was lost; another epoch has to begin"):
                second.recv(0.3)
            push.begin(push.party.run_id, 1)
            send(push, 2)
            message = second.recv(SOON_S)
        assert (message.header, message.epoch, message.sequence) == (b"2", 1, 0)

    def test_a_receiver_that_takes_another_s_place_gets_every_message_from_then_on(self, push):
        for number in range(40):
            push.begin(push.party.run_id, number)
            with PullLink(push.endpoint, stage=1, peer=0) as pull:
                send(push, number)
                assert receive(pull) == number
            wait_until(lambda: not push.connected)

    def test_a_receiver_that_goes_before_it_was_sent_anything_may_be_replaced(self, push):
        with PullLink(push.endpoint, stage=1, peer=0):
            wait_until(lambda: push.connected)
        wait_until(lambda: push.state == "waiting")
        with PullLink(push.endpoint, stage=1, peer=0) as second:
            send(push, 0)
            assert receive(second) == 0

    def test_both_sides_go_on_from_zero_when_a_new_epoch_begins(self, push, pull):
        welcomed: list[tuple[str, int]] = []
        pull.on_welcome(lambda run, epoch: welcomed.append((run, epoch)))
        send(push, 0)
        send(push, 1)
        push.begin(push.party.run_id, 7)
        push.begin(push.party.run_id, 6)
        send(push, 2)
        got = [pull.recv(SOON_S) for _ in range(3)]
        assert [(message.epoch, message.sequence) for message in got] == [(0, 0), (0, 1), (7, 0)]
        assert welcomed[-1] == (push.party.run_id, 7)
        with pytest.raises(StaleEpoch, match="message of epoch 0 is not for stage 1"):
            push.relay(got[0], SOON_S)

    def test_a_restarted_sender_is_another_run(self, push, pull):
        send(push, 0)
        receive(pull)
        push.close()
        wait_until(lambda: pull.state == "lost")
        with pytest.raises(PeerLost, match="stage 1 has lost stage 0"):
            pull.recv(SOON_S)
        with PushLink(push.endpoint, stage=0, peer=1) as reborn:
            wait_until(lambda: pull.poll(0) and pull.state == "refused")
            with pytest.raises(LinkRefused, match=r"stage 1 belongs to run \w+, stage 0 to"):
                pull.recv(SOON_S)
            with pytest.raises(LinkTimeout, match=r"somebody was refused: stage 1 belongs to run"):
                send(reborn, 1, timeout_s=0.1)

    def test_what_is_no_message_is_refused_and_the_link_goes_on(self):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as hostile:
            port = hostile.bind_to_random_port("tcp://127.0.0.1")
            with PullLink(f"tcp://127.0.0.1:{port}", stage=1, peer=0) as pull:
                guest = hostile.recv_multipart()[0]
                for parts in ([b""], [b"\x80\x04pickle"], [os.urandom(5000)], [b"x"] * 3000):
                    hostile.send_multipart([guest, *parts])
                    with pytest.raises(WireError, match="Stage 1 refused a message from stage 0") as caught:
                        pull.recv(SOON_S)
                    assert caught.value.endpoint == pull.endpoint
                early = encode(Kind.CONTROL, b"5", [], source=0, epoch=0, sequence=0, session=1)
                hostile.send_multipart([guest, *early])
                with pytest.raises(WireError, match="it came before a welcome"):
                    pull.recv(SOON_S)
                welcome = encode_word(Welcome(Party(0, run_id="a run"), Window(), {}))
                hello = encode(Kind.LINK, welcome, [], source=0, epoch=0, sequence=0, session=1)
                hostile.send_multipart([guest, *hello])
                hostile.send_multipart([guest, *early])
                assert receive(pull) == 5
            hostile.close(linger=0)

    def test_a_frame_beyond_the_limit_ends_the_connection(self):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as hostile:
            port = hostile.bind_to_random_port("tcp://127.0.0.1")
            limits = Limits(max_frame_bytes=1000, max_header_bytes=1000)
            with PullLink(f"tcp://127.0.0.1:{port}", stage=1, peer=0, limits=limits) as pull:
                hostile.send_multipart([hostile.recv_multipart()[0], bytes(10_000_000)])
                with pytest.raises(LinkTimeout):
                    pull.recv(0.5)
            hostile.close(linger=0)

    def test_a_sender_refuses_what_the_receiver_would_not_take(self):
        limits = Limits(max_frame_bytes=1000)
        with (
            PushLink("tcp://127.0.0.1:*", stage=0, peer=1, limits=limits) as push,
            pytest.raises(WireError, match="frame 0 has 1001 bytes"),
        ):
            send(push, 0, bytes(1001))

    def test_a_port_scan_is_no_peer(self, push, pull):
        wait_until(lambda: push.connected)
        host, port = push.endpoint.removeprefix("tcp://").split(":")
        for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03garbage"):
            with socket.create_connection((host, int(port))) as scan:
                scan.sendall(greeting)
        time.sleep(0.2)
        assert push.connected
        send(push, 0)
        assert receive(pull) == 0

    def test_a_peer_that_goes_away_inside_a_message_spoils_no_other_one(self, push):
        for epoch in range(5):
            push.begin(push.party.run_id, epoch)
            self.send_while_the_peer_goes(push)
        push.begin(push.party.run_id, 5)
        with PullLink(push.endpoint, stage=1, peer=0) as second:
            send(push, 99, b"d", b"e")
            message = second.recv(SOON_S)
        assert message.header == b"99"
        assert [bytes(frame) for frame in message.frames] == [b"d", b"e"]

    def send_while_the_peer_goes(self, push: PushLink) -> None:
        """Send three frames while the peer goes away after the first."""
        peer = PullLink(push.endpoint, stage=1, peer=0)
        wait_until(lambda: push.connected)
        socket = push._socket

        class EndsThePeerAfterOneFrame:
            def __getattr__(self, name: str) -> object:
                return getattr(socket, name)

            def send(self, *args: object, **options: object) -> object:
                sent = socket.send(*args, **options)
                peer.close()
                time.sleep(0.1)
                socket.get(zmq.EVENTS)
                return sent

        push._socket = EndsThePeerAfterOneFrame()
        try:
            send(push, 0, b"a", b"b", b"c")
        finally:
            push._socket = socket
        wait_until(lambda: push.state == "lost")

    def test_messages_stay_whole_while_receivers_come_and_go(self, push):
        stop = threading.Event()
        faults: list[Exception] = []

        def keep_sending() -> None:
            epoch, number = 0, 0
            while not stop.is_set():
                try:
                    push.send(Kind.TENSORS, str(number).encode(), [bytes(70_000)] * 12, timeout_s=0.1)
                    number += 1
                except PeerLost:
                    epoch, number = epoch + 1, 0
                    push.begin(push.party.run_id, epoch)
                except LinkTimeout:
                    continue
                except Exception as error:
                    faults.append(error)

        sender = threading.Thread(target=keep_sending, daemon=True)
        sender.start()
        end = time.monotonic() + 4
        received = 0
        while time.monotonic() < end:
            with PullLink(push.endpoint, stage=1, peer=0) as pull:
                for _ in range(received % 3 + 1):
                    message = pull.recv(SOON_S)
                    assert [frame.nbytes for frame in message.frames] == [70_000] * 12
                    assert int(message.header) == message.sequence
                    received += 1
        stop.set()
        sender.join()
        assert not faults
        assert received > 10


def echo(listen: str, answer_on: str, ready: Connection) -> None:
    """The other process: relays what it gets until told to stop."""
    with (
        PullLink(listen, stage=1, peer=0) as pull,
        PushLink(answer_on, stage=1, peer=0) as push,
    ):
        ready.send(push.endpoint)
        while (message := pull.recv(30)).header != b"stop":
            push.relay(message, 30)


@pytest.fixture(params=["tcp", "ipc", "shared"])
def far(request, tmp_path) -> Iterator[tuple[PushLink, PullLink, multiprocessing.process.BaseProcess]]:
    """Links to and from a process that echoes, and that process."""
    bind = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/there"
    answer_on = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/back"
    with PushLink(bind, stage=0, peer=1, window=Window(4), shared_memory=request.param == "shared") as push:
        ready, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=echo, args=(push.endpoint, answer_on, theirs), daemon=True)
        process.start()
        with PullLink(ready.recv(), stage=0, peer=1) as pull:
            yield push, pull, process
        push.close(linger_s=0)
        process.kill()
        process.join()


def resident_bytes(pid: int) -> int:
    """Memory that is a process's own; what it has mapped of files does not count."""
    return psutil.Process(pid).memory_full_info().uss


class TestTwoProcesses:
    def test_messages_of_all_sizes_come_back(self, far):
        push, pull, process = far
        for number, size in enumerate([0, 1, 65_535, 65_536, ZERO_COPY_BYTES, 9_000_000]):
            payload = os.urandom(size)
            push.send(Kind.TENSORS, b"h", [payload, b"tail"], timeout_s=SOON_S)
            message = pull.recv(SOON_S)
            assert [bytes(frame) for frame in message.frames] == [payload, b"tail"]
            assert (message.sequence, message.epoch, message.source) == (number, 0, 0)
        push.send(Kind.CONTROL, b"stop", timeout_s=SOON_S)
        process.join(SOON_S)
        assert process.exitcode == 0

    def test_a_killed_peer_is_noticed_at_once(self, far):
        push, pull, process = far
        send(push, 0)
        assert receive(pull) == 0
        process.kill()
        process.join()
        wait_until(lambda: (push.state, pull.state) == ("lost", "lost"), within_s=3)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1 at"):
            send(push, 1)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1 at"):
            receive(pull)

    def test_a_stopped_peer_makes_sending_time_out(self, far):
        push, pull, process = far
        send(push, 0)
        assert receive(pull) == 0
        os.kill(process.pid, signal.SIGSTOP)
        try:
            accepted, error = fill(push, timeout_s=0.5)
            assert accepted == 4
            assert "it is connected" in error.message
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert [receive(pull) for _ in range(accepted)] == list(range(accepted))

    def test_sent_wait_says_when_memory_is_still_in_use(self, far):
        push, pull, process = far
        send(push, 0)
        assert receive(pull) == 0
        os.kill(process.pid, signal.SIGSTOP)
        try:
            sent = push.send(Kind.TENSORS, b"", [bytes(64_000_000)], timeout_s=SOON_S)
            if push.way == "memfd":
                assert sent.done
                return
            with pytest.raises(LinkTimeout, match="take the bytes of message 1") as caught:
                sent.wait(0.1)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert (caught.value.stage, caught.value.peer, caught.value.endpoint) == (0, "stage 1", push.endpoint)
        sent.wait(SOON_S)
        assert sent.done

    def test_a_stalled_peer_takes_no_more_memory_than_the_window(self, far):
        """Neither of the peer, nor here, however long one goes on sending."""
        push, pull, process = far
        window, message = 4 * 4_000_000, 4_000_000
        send(push, 0)
        assert receive(pull) == 0
        before = resident_bytes(os.getpid()), resident_bytes(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            fill(push, timeout_s=0.3)
            filled = resident_bytes(os.getpid())
            for _ in range(20):
                with pytest.raises(LinkTimeout):
                    send(push, 9, bytes(message), timeout_s=0.05)
            assert resident_bytes(os.getpid()) - filled < message
            assert filled - before[0] < 2 * window
            assert resident_bytes(process.pid) - before[1] < 2 * window
        finally:
            os.kill(process.pid, signal.SIGCONT)
