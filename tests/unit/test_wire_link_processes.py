# SPDX-License-Identifier: Apache-2.0
"""A link between two processes: one of them is killed, stopped or stalled."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import psutil
import pytest
from links import SOON_S, fill_window, receive_number, send_number, wait_until

from zpptool.wire.link import (
    ZERO_COPY_BYTES,
    LinkOptions,
    LinkReceiver,
    LinkSender,
    LinkTimeout,
    PeerLost,
    Window,
)
from zpptool.wire.message.framing import Kind

SPAWN = multiprocessing.get_context("spawn")


def echo(listen: str, answer_on: str, ready: Connection) -> None:
    """The other process: relays what it receives until a message says `stop`."""
    with (
        LinkReceiver(listen, stage=1, peer=0) as receiver,
        LinkSender(answer_on, stage=1, peer=0) as sender,
    ):
        ready.send(sender.endpoint)
        while (message := receiver.recv(30)).header != b"stop":
            sender.relay(message, 30)


@pytest.fixture(params=["tcp", "ipc", "shared"])
def far(request, tmp_path) -> Iterator[tuple[LinkSender, LinkReceiver, multiprocessing.process.BaseProcess]]:
    """Links to and from a process that echoes, and that process."""
    bind = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/there"
    answer_on = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/back"
    with LinkSender(
        bind, stage=0, peer=1, options=LinkOptions(window=Window(4), shared_memory=request.param == "shared")
    ) as sender:
        ready, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=echo, args=(sender.endpoint, answer_on, theirs), daemon=True)
        process.start()
        with LinkReceiver(ready.recv(), stage=0, peer=1) as receiver:
            yield sender, receiver, process
        sender.close(linger_s=0)
        process.kill()
        process.join()


def resident_bytes(pid: int) -> int:
    """The private memory of a process, without mapped files."""
    return psutil.Process(pid).memory_full_info().uss


@contextmanager
def stopped(process: multiprocessing.process.BaseProcess) -> Iterator[None]:
    """Stop a process for the duration of a block."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


class TestTwoProcesses:
    def test_messages_of_all_sizes_come_back(self, far):
        sender, receiver, process = far
        for number, size in enumerate([0, 1, 65_535, 65_536, ZERO_COPY_BYTES, 9_000_000]):
            payload = os.urandom(size)
            sender.send(Kind.TENSORS, b"h", [payload, b"tail"], timeout_s=SOON_S)
            message = receiver.recv(SOON_S)
            assert [bytes(frame) for frame in message.frames] == [payload, b"tail"]
            assert (message.sequence, message.epoch, message.source) == (number, 0, 0)
        sender.send(Kind.CONTROL, b"stop", timeout_s=SOON_S)
        process.join(SOON_S)
        assert process.exitcode == 0

    def test_a_killed_peer_is_noticed_at_once(self, far):
        sender, receiver, process = far
        send_number(sender, 0)
        assert receive_number(receiver) == 0
        process.kill()
        process.join()
        wait_until(lambda: (sender.state, receiver.state) == ("lost", "lost"), within_s=3)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1 at"):
            send_number(sender, 1)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1 at"):
            receive_number(receiver)

    def test_a_stopped_peer_makes_sending_time_out(self, far):
        sender, receiver, process = far
        send_number(sender, 0)
        assert receive_number(receiver) == 0
        with stopped(process):
            accepted, error = fill_window(sender, timeout_s=0.5)
            assert accepted == 4
            assert "it is connected" in error.message
        assert [receive_number(receiver) for _ in range(accepted)] == list(range(accepted))

    def test_sent_wait_says_when_memory_is_still_in_use(self, far):
        sender, receiver, process = far
        send_number(sender, 0)
        assert receive_number(receiver) == 0
        with stopped(process):
            sent = sender.send(Kind.TENSORS, b"", [bytes(64_000_000)], timeout_s=SOON_S)
            if sender.payload_channel == "memfd":
                assert sent.done
                return
            with pytest.raises(LinkTimeout, match="take the bytes of message 1") as caught:
                sent.wait(0.1)
        assert (caught.value.stage, caught.value.peer, caught.value.endpoint) == (0, "stage 1", sender.endpoint)
        sent.wait(SOON_S)
        assert sent.done

    def test_a_stalled_peer_takes_no_more_memory_than_the_window(self, far):
        """Neither in the peer nor in this process, however long the sending goes on."""
        sender, receiver, process = far
        window, message = 4 * 4_000_000, 4_000_000
        send_number(sender, 0)
        assert receive_number(receiver) == 0
        before = resident_bytes(os.getpid()), resident_bytes(process.pid)
        with stopped(process):
            fill_window(sender, timeout_s=0.3)
            filled = resident_bytes(os.getpid())
            for _ in range(20):
                with pytest.raises(LinkTimeout):
                    send_number(sender, 9, bytes(message), timeout_s=0.05)
            assert resident_bytes(os.getpid()) - filled < message
            assert filled - before[0] < 2 * window
            assert resident_bytes(process.pid) - before[1] < 2 * window
