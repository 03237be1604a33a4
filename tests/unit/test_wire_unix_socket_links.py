# SPDX-License-Identifier: Apache-2.0
"""Links whose small messages go by a Unix socket beside ZeroMQ's: complete, in order, and lost only with their peer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from links import SOON_S, is_listed, open_sockets, receive, send, wait_until

from zpptool.wire.link import LinkError, LinkReceiver, LinkRefused, LinkSender, PeerLost, Window
from zpptool.wire.local.unix_socket import UnixSocketReceiver, UnixSocketSender, this_place
from zpptool.wire.message.framing import INLINE_BELOW_BYTES, Kind
from zpptool.wire.protocol.flow_control import Credit

pytestmark = [
    pytest.mark.skipif(this_place() is None, reason="this system has no abstract Unix sockets"),
    pytest.mark.timeout(60),
]
SMALL = 1000
SIZES = (0, SMALL, INLINE_BELOW_BYTES - 9, INLINE_BELOW_BYTES, 300_000, 2 << 20, (2 << 20) + 1, 3_000_000)
"""On both sides of what goes by the shortcut, in one piece, through shared memory and in chunks."""


@contextmanager
def links(
    address: str = "tcp://127.0.0.1:*", *, window: Window | None = None, sender_shares: bool = True, shares: bool = True
) -> Iterator[tuple[LinkSender, LinkReceiver]]:
    """Both ends of a link on this host."""
    window = window or Window(4)
    with LinkSender(address, stage=0, peer=1, window=window, shared_memory=sender_shares) as push:
        with LinkReceiver(push.endpoint, stage=1, peer=0, window=window, shared_memory=shares) as pull:
            yield push, pull
        push.close(linger_s=0)


@pytest.fixture(params=["tcp", "ipc"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/link"


def shortcuts(push: LinkSender, pull: LinkReceiver) -> tuple[UnixSocketSender | None, UnixSocketReceiver | None]:
    """Those of the session."""
    assert push._session is not None
    return push._session.outbound.shortcut, pull._inbound.shortcut


def went_short(push: LinkSender) -> bool:
    """Whether the last message went by the shortcut."""
    assert push._session is not None
    shortcut = push._session.outbound.shortcut
    return shortcut is not None and shortcut._not_before <= push.sequence


def send_short(push: LinkSender, number: int) -> bool:
    """Send a small message; whether it went by the shortcut."""
    send(push, number, bytes(SMALL))
    return went_short(push)


def warm(push: LinkSender, pull: LinkReceiver, number: int = 0) -> None:
    """Send and receive one, and wait until the sender knows: from then on the shortcut is open."""
    send(push, number)
    assert receive(pull) == number
    wait_until(lambda: push.queue == 0)


@cache
def noise() -> memoryview:
    return memoryview(random.Random(5).randbytes(4 << 20))


def frames_of(number: int, size: int, count: int) -> list[memoryview]:
    """The frames of a message; each number's are others."""
    return [noise()[7 * number + index :][:size] for index in range(count)]


def refuse(*_: int) -> None:
    """In place of the call that takes memory for what is shared: then frames go in chunks."""
    raise OSError(28, "No space left on device")


def send_mixed(push: LinkSender, number: int, size: int, count: int = 1) -> None:
    push.send(Kind.TENSORS, b"%d" % number, frames_of(number, size, count), timeout_s=SOON_S)


def expect(pull: LinkReceiver, number: int, size: int, count: int = 1) -> None:
    """The next message is this one, bit for bit."""
    message = pull.recv(SOON_S)
    assert (message.kind, message.header, message.sequence) == (Kind.TENSORS, b"%d" % number, number)
    assert [frame.nbytes for frame in message.frames] == [size] * count
    assert list(message.frames) == frames_of(number, size, count)


TWO_WAYS = ((SMALL, 1), (0, 1), (3_000_000, 2), (SMALL, 2), (SMALL, 1))
"""Of these the first two go by the shortcut, and the others do not if memory is scarce."""


def send_two_ways(push: LinkSender) -> None:
    """Send these, as far as the window goes at once, and go on in another thread."""
    for number, planned in enumerate(TWO_WAYS[:4], start=1):
        send_mixed(push, number, *planned)
        assert went_short(push) or number > 2
    threading.Thread(target=send_mixed, args=(push, 5, *TWO_WAYS[4])).start()


@contextmanager
def sent_meanwhile(pull: LinkReceiver, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """In a block that receives, do this once, after the shortcut was found empty and before ZeroMQ is asked."""
    ask = pull._try_recv
    pending = [act]

    def do_and_ask() -> list[memoryview] | None:
        if pending:
            pending.pop()()
            wait_until(pull._readable)
        return ask()

    patch.setattr(pull, "_try_recv", do_and_ask)
    yield
    assert not pending


class TestLinks:
    def test_small_messages_go_by_it_once_the_receiver_has_taken_what_went_before(self, address: str) -> None:
        with links(address) as (push, pull):
            assert not send_short(push, 0), "the receiver had not been told of it"
            assert receive(pull) == 0
            wait_until(lambda: push.queue == 0)
            assert [send_short(push, number) for number in (1, 2, 3)] == [True] * 3
            assert not pull._readable(), "ZeroMQ has none of them"
            assert [receive(pull) for _ in range(3)] == [1, 2, 3]

    def test_one_that_waits_is_woken_by_it(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        got: list[int] = []
        for number in (1, 2):
            waiting = threading.Thread(target=lambda: got.append(receive(pull)))
            waiting.start()
            time.sleep(0.1)
            assert send_short(push, number)
            waiting.join(SOON_S)
            wait_until(lambda: push.queue == 0)
        assert got == [1, 2]

    def test_poll_tells_of_what_came_by_it(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        assert not pull.poll(0.05)
        assert send_short(push, 1)
        assert pull.poll(SOON_S)
        assert pull.poll(0)
        assert receive(pull) == 1
        assert not pull.poll(0.05)

    def test_one_that_went_by_zeromq_closes_it_until_it_was_taken(
        self, push: LinkSender, pull: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warm(push, pull)
        assert send_short(push, 1)
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        send(push, 2, bytes(3_000_000))
        assert [send_short(push, 3), went_short(push)] == [False, False]
        assert [receive(pull) for _ in range(2)] == [1, 2]
        wait_until(lambda: push.queue == 1)
        assert not send_short(push, 4), "3 has not been taken"
        assert [receive(pull) for _ in range(2)] == [3, 4]
        wait_until(lambda: push.queue == 0)
        assert send_short(push, 5)
        assert receive(pull) == 5

    def test_what_is_said_of_shared_memory_goes_by_it(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        if push.way == "socket":
            pytest.skip("this system has no memfd")
        for number, size in enumerate((INLINE_BELOW_BYTES, 3_000_000), start=1):
            send_mixed(push, number, size, 2)
            assert went_short(push)
            assert not pull._readable()
            expect(pull, number, size, 2)

    def test_several_frames_go_by_zeromq(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        send(push, 1, b"a", b"b")
        assert not went_short(push)
        assert [bytes(frame) for frame in pull.recv(SOON_S).frames] == [b"a", b"b"]

    def test_what_does_not_fit_goes_by_zeromq_in_order(self) -> None:
        with links(window=Window(500)) as (push, pull):
            send(push, 0)
            assert receive(pull) == 0
            push.ping()  # the answer tells what was taken
            wait_until(lambda: pull.poll(0) or push.queue == 0)
            by_it = []
            for number in range(1, 400):
                send(push, number, bytes(SMALL * (1 + number % 50)))
                by_it.append(went_short(push))
            assert 0 < sum(by_it) < len(by_it)
            assert sorted(by_it, reverse=True) == by_it, "none goes by it behind one that did not"
            assert [receive(pull) for _ in range(1, 400)] == list(range(1, 400))

    @pytest.mark.parametrize("scarce", [False, True])
    def test_what_is_found_at_zeromq_waits_for_what_was_sent_before_it(
        self, push: LinkSender, pull: LinkReceiver, scarce: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warm(push, pull)
        if scarce:
            monkeypatch.setattr(os, "posix_fallocate", refuse)
        with sent_meanwhile(pull, monkeypatch, lambda: send_two_ways(push)):
            for number, (size, count) in enumerate(TWO_WAYS, start=1):
                expect(pull, number, size, count)
        assert not pull.poll(0)

    def test_a_welcome_waits_for_what_the_last_epoch_sent(
        self, push: LinkSender, pull: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def send_and_begin() -> None:
            assert send_short(push, 1)
            push.begin(push.party.run_id, 1)
            wait_until(pull._readable)

        warm(push, pull)
        with sent_meanwhile(pull, monkeypatch, send_and_begin):
            assert receive(pull) == 1
        assert pull.party.epoch == 0
        warm(push, pull)
        assert pull.party.epoch == 1

    @pytest.mark.parametrize(("sender_shares", "shares"), [(False, True), (True, False), (False, False)])
    def test_one_side_that_shares_nothing_is_enough_for_none(
        self, address: str, sender_shares: bool, shares: bool
    ) -> None:
        with links(address, sender_shares=sender_shares, shares=shares) as (push, pull):
            warm(push, pull)
            assert not send_short(push, 1)
            assert receive(pull) == 1
            assert shortcuts(push, pull) == (None, None)

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
        with pytest.MonkeyPatch.context() as patch, links(window=window) as (push, pull):
            if scarce:
                patch.setattr(os, "posix_fallocate", refuse)
            sent: list[tuple[int, int]] = []
            due = 0
            for size, count, reads in steps:
                while not push._credit.allows(size * count + 2) and due < len(sent):
                    expect(pull, due, *sent[due])
                    due += 1
                    if not pull.poll(0):
                        time.sleep(0.001)
                send_mixed(push, len(sent), size, count)
                sent.append((size, count))
                for _ in range(min(reads, len(sent) - due)):
                    expect(pull, due, *sent[due])
                    due += 1
            for number in range(due, len(sent)):
                expect(pull, number, *sent[number])
            assert not pull.poll(0)

    @pytest.mark.parametrize("scarce", [False, True])
    def test_a_reader_with_moods_of_its_own_gets_all_in_order(
        self, address: str, scarce: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if scarce:
            monkeypatch.setattr(os, "posix_fallocate", refuse)
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
                    expect(pull, number, *planned)
                    time.sleep(pause)
            except BaseException as error:
                faults.append(error)

        with links(address, window=Window(6, 4 << 20)) as (push, pull):
            reader = threading.Thread(target=read)
            reader.start()
            ways = []
            for number, planned in enumerate(plan):
                send_mixed(push, number, *planned)
                ways.append(went_short(push))
                if chance.random() < 0.1:
                    with suppress(AssertionError):  # that it has caught up; it may keep the last to itself
                        wait_until(lambda: push.queue <= 1, within_s=0.1)
            reader.join(SOON_S)
            assert not reader.is_alive()
            assert not faults
            assert not pull.poll(0)
        changes = sum(before != after for before, after in pairwise(ways))
        assert changes > 10, "they went now by the one, now by the other"

    def test_many_threads_may_send_and_receive(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        got: list[int] = []
        readers = [
            threading.Thread(target=lambda: got.extend(receive(pull) for _ in range(100)))  # a false gap would raise
            for _ in range(3)
        ]
        writers = [
            threading.Thread(target=lambda base=base: [send_short(push, base + number) for number in range(100)])
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
            with links() as (push, pull):
                for epoch in range(3):
                    push.begin(push.party.run_id, epoch)
                    warm(push, pull)
                    assert send_short(push, 1)
                    kept.append(shortcuts(push, pull))  # none is closed because nobody refers to it
                    if epoch < 2:
                        assert receive(pull) == 1
            wait_until(lambda: open_sockets() <= before)

    def test_waiting_takes_no_time_after_the_session_has_ended(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        mine, _ = shortcuts(push, pull)
        assert mine is not None
        mine.close()
        began = time.process_time()
        assert not pull.poll(0.5)
        assert time.process_time() - began < 0.2
        assert not send_short(push, 1), "it is closed, and ZeroMQ is not"
        assert receive(pull) == 1

    def test_an_interrupt_behind_the_send_takes_the_link_down(
        self, push: LinkSender, pull: LinkReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else the next message would have the same number."""
        warm(push, pull)

        def interrupt(_credit: Credit, _nbytes: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Credit, "spend", interrupt)
        with pytest.raises(KeyboardInterrupt):
            send(push, 1)
        monkeypatch.undo()
        with pytest.raises(LinkError, match="closed"):
            send(push, 2)
        assert receive(pull) == 1
        with pytest.raises(PeerLost):
            receive(pull)

    def test_what_the_sender_before_had_to_say_is_over_with_a_move(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        assert send_short(push, 1)
        with LinkSender("tcp://127.0.0.1:*", stage=0, peer=1, party=push.party) as other:
            pull.move(other.endpoint)
            with pytest.raises((LinkRefused, PeerLost)):
                receive(pull)


class TestSessions:
    def test_a_new_epoch_has_a_shortcut_of_its_own(self, push: LinkSender, pull: LinkReceiver) -> None:
        warm(push, pull)
        old = shortcuts(push, pull)
        assert old[0] is not None
        assert old[1] is not None
        push.begin(push.party.run_id, 1)
        wait_until(lambda: not is_listed(old[0]))
        assert not old[0].send(b"stale", 100)
        warm(push, pull)
        new = shortcuts(push, pull)
        assert None not in new
        assert set(old).isdisjoint(new)
        assert send_short(push, 1)
        assert old[1].receive() is None
        message = pull.recv(SOON_S)
        assert (message.header, message.epoch, message.sequence) == (b"1", 1, 1)

    def test_what_the_last_epoch_sent_comes_before_the_next_one_s_or_not_at_all(
        self, push: LinkSender, pull: LinkReceiver
    ) -> None:
        warm(push, pull)
        assert [send_short(push, number) for number in (1, 2)] == [True, True]
        push.begin(push.party.run_id, 1)
        send(push, 3)
        got = [pull.recv(SOON_S) for _ in range(3)]
        assert [(message.header, message.epoch, message.sequence) for message in got] == [
            (b"1", 0, 1), (b"2", 0, 2), (b"3", 1, 0),
        ]  # fmt: skip
        assert not pull.poll(0.05)

    def test_many_epochs_in_a_row_lose_and_repeat_nothing(self, push: LinkSender, pull: LinkReceiver) -> None:
        chance = random.Random(3)
        sent: list[tuple[int, int]] = []
        got: list[tuple[int, int]] = []
        short = 0
        for epoch in range(1, 60):
            push.begin(push.party.run_id, epoch)
            for number in range(chance.randrange(4)):
                short += send_short(push, number)
                sent.append((epoch, number))
                for _ in range(chance.randrange(3) if len(got) < len(sent) - 1 else chance.randrange(2)):
                    message = pull.recv(SOON_S)
                    got.append((message.epoch, message.sequence))
                if len(got) == len(sent):
                    wait_until(lambda: push.queue == 0)
        while len(got) < len(sent):
            message = pull.recv(SOON_S)
            got.append((message.epoch, message.sequence))
        assert got == sent
        assert not pull.poll(0.05)
        assert 0 < short < len(sent)

    def test_a_receiver_that_comes_again_gets_a_new_one_and_nothing_stale(self, push: LinkSender) -> None:
        for epoch in range(5):
            push.begin(push.party.run_id, epoch)
            with LinkReceiver(push.endpoint, stage=1, peer=0, window=Window(4)) as pull:
                warm(push, pull, 10 * epoch)
                assert send_short(push, 10 * epoch + 1)
                assert receive(pull) == 10 * epoch + 1
                assert send_short(push, 10 * epoch + 2)
            wait_until(lambda: not push.connected)  # and that one was never read

    def test_a_receiver_that_has_gone_is_lost_to_the_sender(self, push: LinkSender) -> None:
        with LinkReceiver(push.endpoint, stage=1, peer=0, window=Window(4)) as pull:
            warm(push, pull)
            assert send_short(push, 1)
            mine, _ = shortcuts(push, pull)
            assert mine is not None
        wait_until(lambda: push.state == "lost")
        assert not is_listed(mine)
        with pytest.raises(PeerLost, match="stage 0 has lost stage 1"):
            send(push, 2)


KILLED = """
import os, signal, sys, time
from zpptool.wire.link import LinkSender, Window
push = LinkSender(sys.argv[1], stage=0, peer=1, window=Window(4))
print(push.endpoint, flush=True)
push.send(2, b"0", timeout_s=30)
while push.queue:
    time.sleep(0.001)
sys.stdin.readline()
for number in range(1, 5):
    push.send(2, b"%d" % number, [bytes(1000)], timeout_s=30)
print(push._session.outbound.shortcut._not_before, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_sender_sent_is_read_and_then_it_is_lost(address: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sender:
        try:
            assert sender.stdout is not None
            with LinkReceiver(sender.stdout.readline().strip(), stage=1, peer=0, window=Window(4)) as pull:
                assert receive(pull) == 0
                out, _ = sender.communicate("go\n", timeout=30)
                assert (int(out) <= 1, sender.returncode) == (True, -signal.SIGKILL), "these went by the shortcut"
                assert [receive(pull) for _ in range(3)] == [1, 2, 3]
                wait_until(lambda: pull.state == "lost")
                assert receive(pull) == 4
                for _ in range(2):
                    with pytest.raises(PeerLost, match="stage 1 has lost stage 0"):
                        pull.recv(SOON_S)
        finally:
            with suppress(ProcessLookupError):
                sender.kill()
