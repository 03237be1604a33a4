# SPDX-License-Identifier: Apache-2.0
"""A link delivers whole messages once and in order, or raises within its deadline; it never hangs or grows."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from links import SOON_S, fill_window, receive_number, send_number, wait_until

from zpptool.errors import ExitCode, ZppError
from zpptool.places import HEAD
from zpptool.wire.link import (
    ZERO_COPY_BYTES,
    LinkError,
    LinkReceiver,
    LinkSender,
    LinkTimeout,
)
from zpptool.wire.message.framing import Kind


class TestDelivery:
    def test_a_message_arrives_whole(self, sender, receiver):
        sender.begin(sender.party.run_id, 9)
        sender.send(Kind.TENSORS, b"header", [b"", b"small", b"x" * 300_000], source=HEAD, timeout_s=SOON_S)
        message = receiver.recv(SOON_S)
        assert (message.kind, message.header, message.source, message.epoch) == (Kind.TENSORS, b"header", HEAD, 9)
        assert [bytes(frame) for frame in message.frames] == [b"", b"small", b"x" * 300_000]

    def test_the_source_is_the_link_s_own_place_by_default(self, sender, receiver):
        send_number(sender, 0)
        assert receiver.recv(SOON_S).source == 0

    def test_numbers_count_from_zero_in_one_session(self, sender, receiver):
        for number in range(3):
            send_number(sender, number)
        messages = [receiver.recv(SOON_S) for _ in range(3)]
        assert [message.sequence for message in messages] == [0, 1, 2]
        assert len({message.session for message in messages}) == 1

    def test_a_relay_keeps_source_and_epoch_and_counts_for_itself(self, sender, receiver):
        sender.send(Kind.TENSORS, b"a", [b"x"], timeout_s=SOON_S)
        sender.send(Kind.TENSORS, b"b", [b"y" * ZERO_COPY_BYTES, b"z"], source=HEAD, timeout_s=SOON_S)
        receiver.recv(SOON_S)
        with (
            LinkSender("tcp://127.0.0.1:*", stage=1, peer=2) as onward,
            LinkReceiver(onward.endpoint, stage=2, peer=1) as end,
        ):
            onward.relay(receiver.recv(SOON_S), SOON_S)
            message = end.recv(SOON_S)
        assert (message.header, message.source, message.epoch, message.sequence) == (b"b", HEAD, 0, 0)
        assert [bytes(frame) for frame in message.frames] == [b"y" * ZERO_COPY_BYTES, b"z"]

    def test_poll_reports_whether_a_message_has_arrived(self, sender, receiver):
        assert not receiver.poll(0.05)
        send_number(sender, 0)
        assert receiver.poll(SOON_S)
        assert receiver.poll(0)
        assert receive_number(receiver) == 0
        assert not receiver.poll(0)

    def test_many_threads_may_send(self, sender, receiver):
        threads = [
            threading.Thread(target=lambda base=base: [send_number(sender, base + number) for number in range(50)])
            for base in range(0, 400, 100)
        ]
        for thread in threads:
            thread.start()
        got = [receive_number(receiver) for _ in range(200)]
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(base + number for base in range(0, 400, 100) for number in range(50))

    def test_many_threads_may_receive(self, sender, receiver):
        got: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: got.extend(receive_number(receiver) for _ in range(50))
            )  # a false gap would raise
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for number in range(200):
            send_number(sender, number)
        for thread in threads:
            thread.join()
        assert sorted(got) == list(range(200))

    @pytest.mark.parametrize("size", [0, 100_000, 30_000_000])
    def test_what_was_sent_before_close_arrives_after_it(self, sender, receiver, size):
        wait_until(lambda: sender.connected)
        send_number(sender, 1, bytes(size))
        sender.close()
        wait_until(lambda: not receiver.connected)
        assert receive_number(receiver) == 1


class TestMemory:
    def test_small_frames_may_be_changed_at_once(self, sender, receiver):
        memory = bytearray(b"a" * (ZERO_COPY_BYTES - 1))
        sent = sender.send(Kind.TENSORS, b"", [memory, memory], timeout_s=SOON_S)
        assert sent.done
        memory[:] = b"b" * len(memory)
        assert set(bytes(receiver.recv(SOON_S).frames[0])) == {ord("a")}

    def test_large_frames_may_be_changed_after_wait(self, sender, receiver):
        for _ in range(5):
            memory = bytearray(b"a" * (8 * ZERO_COPY_BYTES))
            sender.send(Kind.TENSORS, b"", [memory], timeout_s=SOON_S).wait(SOON_S)
            memory[:] = b"b" * len(memory)
            assert bytes(receiver.recv(SOON_S).frames[0]).count(b"a") == len(memory)

    def test_large_frames_outlive_the_caller_s_reference(self, sender, receiver):
        for number in range(4):
            sender.send(Kind.TENSORS, b"", [bytes([number]) * (2 * ZERO_COPY_BYTES)], timeout_s=SOON_S)
        gc.collect()
        assert [receiver.recv(SOON_S).frames[0][-1] for _ in range(4)] == [0, 1, 2, 3]

    def test_a_stalled_receiver_bounds_what_is_accepted(self, sender, receiver):
        wait_until(lambda: sender.connected)
        accepted, error = fill_window(sender, timeout_s=0.3)
        assert accepted == 4
        assert f"to take message {accepted}; it is connected" in error.message
        assert [receive_number(receiver) for _ in range(accepted)] == list(range(accepted))
        send_number(sender, accepted)
        assert receive_number(receiver) == accepted


class TestDeadlines:
    def test_a_send_without_receiver_times_out_and_sends_nothing(self, sender):
        began = time.monotonic()
        with pytest.raises(LinkTimeout) as caught:
            send_number(sender, 1, timeout_s=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        error = caught.value
        assert (error.stage, error.peer, error.endpoint, error.exit_code) == (
            0,
            "stage 1",
            sender.endpoint,
            ExitCode.STAGE,
        )
        assert error.message.startswith(f"Stage 0 waited 0.2 s for stage 1 ({sender.endpoint}) to take message 0")
        assert "it is not connected" in error.message
        with LinkReceiver(sender.endpoint, stage=1, peer=0) as late:
            send_number(sender, 2)
            assert receive_number(late) == 2
            assert not late.poll(0.05)

    def test_a_receive_without_sender_times_out(self):
        with LinkReceiver("tcp://127.0.0.1:9", stage=HEAD, peer=2) as link, pytest.raises(LinkTimeout) as caught:
            link.recv(0.2)
        assert caught.value.message.startswith("Head waited 0.2 s for stage 2 (tcp://127.0.0.1:9) to send message 0")
        assert "it is not connected" in caught.value.message
        assert "Is stage 2 running" in str(caught.value.hint)

    def test_a_receive_from_a_silent_sender_says_that_it_is_connected(self, sender, receiver):
        send_number(sender, 0)
        receive_number(receiver)
        with pytest.raises(LinkTimeout, match=r"to send message 1; it is connected"):
            receiver.recv(0.05)

    def test_a_second_thread_waits_no_longer_than_its_own_deadline(self, sender):
        def first_call() -> None:
            with pytest.raises(LinkTimeout, match="not connected"):
                send_number(sender, 0, timeout_s=1.0)

        first = threading.Thread(target=first_call)
        first.start()
        time.sleep(0.1)
        with pytest.raises(LinkTimeout, match="another thread's call"):
            send_number(sender, 1, timeout_s=0.1)
        first.join()

    @pytest.mark.parametrize("timeout_s", [-1.0, float("inf"), float("nan")])
    def test_there_is_no_wait_without_a_deadline(self, sender, timeout_s):
        with pytest.raises(ZppError, match="finite"):
            send_number(sender, 0, timeout_s=timeout_s)


class TestClosing:
    def test_closing_twice_is_no_fault_and_use_afterwards_is(self, sender, receiver):
        sender.close()
        sender.close()
        with pytest.raises(LinkError, match="is closed"):
            send_number(sender, 0)
        receiver.close()
        with pytest.raises(LinkError, match="is closed"):
            receiver.poll(0)

    @pytest.mark.parametrize("waiting", ["recv", "poll", "send"])
    def test_closing_wakes_a_waiting_thread(self, sender, waiting):
        raised: list[LinkError] = []

        def wait() -> None:
            with pytest.raises(LinkError) as caught:
                calls[waiting]()
            raised.append(caught.value)

        with LinkReceiver("tcp://127.0.0.1:9", stage=1, peer=0) as receiver:
            calls = {
                "recv": lambda: receiver.recv(60),
                "poll": lambda: receiver.poll(60),
                "send": lambda: send_number(sender, 0, timeout_s=60),
            }
            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.2)
            began = time.monotonic()
            (sender if waiting == "send" else receiver).close()
            thread.join(SOON_S)
        assert time.monotonic() - began < 3
        assert "was closed while waiting" in raised[0].message

    def test_closing_with_a_stalled_peer_takes_no_longer_than_the_linger(self, sender, receiver):
        wait_until(lambda: sender.connected)
        fill_window(sender, timeout_s=0.2)
        began = time.monotonic()
        sender.close(linger_s=0.5)
        assert time.monotonic() - began < 2

    def test_closing_from_a_signal_handler_ends_the_call_it_interrupted(self, receiver):
        old = signal.signal(signal.SIGALRM, lambda *_: receiver.close())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        try:
            with pytest.raises(LinkError, match="closed"):
                receiver.recv(60)
        finally:
            signal.signal(signal.SIGALRM, old)
        assert time.monotonic() - began < 2

    def test_an_interrupt_leaves_the_link_usable(self, sender, receiver):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                receiver.recv(60)
        finally:
            signal.signal(signal.SIGALRM, old)
        send_number(sender, 3)
        assert receive_number(receiver) == 3

    def test_a_forked_child_does_not_touch_its_parent_s_link(self, sender, receiver):
        child = os.fork()
        if child == 0:
            try:
                sender.close()
                send_number(sender, 0, timeout_s=1)
            except LinkError as error:
                os._exit(0 if "belongs to process" in error.message else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        send_number(sender, 7)
        assert receive_number(receiver) == 7

    def test_threads_and_sockets_of_closed_and_dropped_links_are_released(self):
        def leave(close: bool) -> None:
            link = LinkSender("tcp://127.0.0.1:*", stage=0, peer=1)
            if close:
                link.close()

        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for close in (True, False):
            for _ in range(5):
                leave(close)
            gc.collect()
            wait_until(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before)

    def test_a_process_ends_without_closing_its_links(self):
        code = (
            "from zpptool.wire.link import *\n"
            "sender = LinkSender('tcp://127.0.0.1:*', stage=0, peer=1)\n"
            "receiver = LinkReceiver(sender.endpoint, stage=1, peer=0)\n"
            "sender.send(2, b'', [bytes(4_000_000)], timeout_s=5)\n"
        )
        # Many side by side: before the links were closed at exit, a quarter of them died of memory freed too early.
        started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(16)]
        try:
            ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
        finally:
            for process in started:
                process.kill()
        assert ended == [("", 0)] * len(started)
