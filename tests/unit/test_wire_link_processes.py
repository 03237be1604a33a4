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
from links import SOON_S, fill, receive, send, wait_until

from zpptool.wire.link import (
    ZERO_COPY_BYTES,
    LinkReceiver,
    LinkSender,
    LinkTimeout,
    PeerLost,
    Window,
)
from zpptool.wire.message.framing import Kind

SPAWN = multiprocessing.get_context("spawn")


def echo(listen: str, answer_on: str, ready: Connection) -> None:
    """The other process: relays what it gets until told to stop."""
    with (
        LinkReceiver(listen, stage=1, peer=0) as pull,
        LinkSender(answer_on, stage=1, peer=0) as push,
    ):
        ready.send(push.endpoint)
        while (message := pull.recv(30)).header != b"stop":
            push.relay(message, 30)


@pytest.fixture(params=["tcp", "ipc", "shared"])
def far(request, tmp_path) -> Iterator[tuple[LinkSender, LinkReceiver, multiprocessing.process.BaseProcess]]:
    """Links to and from a process that echoes, and that process."""
    bind = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/there"
    answer_on = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/back"
    with LinkSender(bind, stage=0, peer=1, window=Window(4), shared_memory=request.param == "shared") as push:
        ready, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=echo, args=(push.endpoint, answer_on, theirs), daemon=True)
        process.start()
        with LinkReceiver(ready.recv(), stage=0, peer=1) as pull:
            yield push, pull, process
        push.close(linger_s=0)
        process.kill()
        process.join()


def resident_bytes(pid: int) -> int:
    """Memory that is a process's own; what it has mapped of files does not count."""
    return psutil.Process(pid).memory_full_info().uss


@contextmanager
def stopped(process: multiprocessing.process.BaseProcess) -> Iterator[None]:
    """For the duration of a block, a process does nothing."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


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
        with stopped(process):
            accepted, error = fill(push, timeout_s=0.5)
            assert accepted == 4
            assert "it is connected" in error.message
        assert [receive(pull) for _ in range(accepted)] == list(range(accepted))

    def test_sent_wait_says_when_memory_is_still_in_use(self, far):
        push, pull, process = far
        send(push, 0)
        assert receive(pull) == 0
        with stopped(process):
            sent = push.send(Kind.TENSORS, b"", [bytes(64_000_000)], timeout_s=SOON_S)
            if push.way == "memfd":
                assert sent.done
                return
            with pytest.raises(LinkTimeout, match="take the bytes of message 1") as caught:
                sent.wait(0.1)
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
        with stopped(process):
            fill(push, timeout_s=0.3)
            filled = resident_bytes(os.getpid())
            for _ in range(20):
                with pytest.raises(LinkTimeout):
                    send(push, 9, bytes(message), timeout_s=0.05)
            assert resident_bytes(os.getpid()) - filled < message
            assert filled - before[0] < 2 * window
            assert resident_bytes(process.pid) - before[1] < 2 * window
