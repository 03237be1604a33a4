# SPDX-License-Identifier: Apache-2.0
"""Shared memory between two processes of a host: whole frames, never stale ones, released with its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.wire.link_errors import WireError
from zpptool.wire.local.arena import ALIGNMENT, GENERATIONS, Arena, Block
from zpptool.wire.local.shared_memory import SLOTS, SharedMemoryReceiver, SharedMemorySender, this_host

pytestmark = pytest.mark.skipif(this_host() is None, reason="this system has no memfd")
SIZE = 8 << 20
FRAME = 1 << 20


def pair(size: int = SIZE) -> tuple[SharedMemorySender, SharedMemoryReceiver]:
    """Both ends, in this process."""
    sender = SharedMemorySender(size)
    return sender, SharedMemoryReceiver(sender.offer)


def put(sender: SharedMemorySender, data: bytes) -> int:
    ticket = sender.put(data)
    assert ticket is not None
    return ticket


def test_frames_arrive_in_place_and_belong_to_the_receiver():
    sender, receiver = pair()
    assert sender.ready
    tickets = [put(sender, bytes([number]) * FRAME) for number in range(3)]
    views = [receiver.get(ticket, FRAME) for ticket in tickets]
    views[1][:] = b"x" * FRAME
    assert [bytes(view) for view in views] == [bytes(FRAME), b"x" * FRAME, b"\2" * FRAME]


def test_a_sender_is_not_ready_before_the_receiver_has_mapped_the_segment():
    sender = SharedMemorySender(SIZE)
    assert not sender.ready


def test_memory_is_reused_only_when_its_last_view_is_released():
    sender, receiver = pair(2 * FRAME)
    first, second = (receiver.get(put(sender, bytes([number]) * FRAME), FRAME) for number in (1, 2))
    assert sender.put(bytes(FRAME)) is None
    part = first[10:20]
    del first
    assert sender.put(bytes(FRAME)) is None
    assert bytes(part) == b"\1" * 10
    del part
    third = receiver.get(put(sender, b"\3" * FRAME), FRAME)
    assert bytes(third) == b"\3" * FRAME
    assert bytes(second) == b"\2" * FRAME


def test_a_view_outlives_both_ends():
    sender, receiver = pair()
    view = receiver.get(put(sender, b"z" * FRAME), FRAME)
    sender.close()
    receiver.close()
    del sender, receiver
    assert bytes(view) == b"z" * FRAME


def test_a_ticket_is_good_once():
    sender, receiver = pair(FRAME)
    ticket = put(sender, bytes(FRAME))
    view = receiver.get(ticket, FRAME)
    with pytest.raises(WireError, match="not the one"):
        receiver.get(ticket, FRAME)
    del view
    newer = put(sender, b"n" * FRAME)
    with pytest.raises(WireError, match="not the one"):
        receiver.get(ticket, FRAME)
    assert bytes(receiver.get(newer, FRAME)) == b"n" * FRAME


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_no_ticket_reaches_outside_the_segment(ticket, nbytes):
    _giver, receiver = pair(FRAME)
    with pytest.raises(WireError):
        receiver.get(ticket, nbytes)


def test_slots_run_out_without_harm():
    sender, receiver = pair()
    held = [receiver.get(put(sender, b"a" * 8), 8) for _ in range(SLOTS)]
    assert sender.put(b"a" * 8) is None
    del held[5]
    assert sender.put(b"a" * 8) is not None


def test_a_failed_allocation_is_no_fault(monkeypatch):
    sender, _taker = pair()

    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert sender.put(bytes(FRAME)) is None
    monkeypatch.undo()
    assert sender.put(bytes(FRAME)) is not None


def forged(sender: SharedMemorySender, **changed: str) -> str:
    names = ("pid", "fd", "size", "token")
    return ":".join((dict(zip(names, sender.offer.split(":"), strict=True)) | changed).values())


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pid": "0"}, "cannot be opened"),
        ({"pid": "1/../self"}, "cannot be parsed"),
        ({"fd": "999999"}, "cannot be opened"),
        ({"token": "00" * 16}, "another token"),
        ({"size": str(4 * SIZE)}, "not sealed at the size"),
    ],
)
def test_another_segment_than_the_one_meant_is_refused(changed, match):
    sender = SharedMemorySender(SIZE)
    with pytest.raises(WireError, match=match):
        SharedMemoryReceiver(forged(sender, **changed))
    assert not sender.ready


def test_what_could_shrink_or_block_is_not_mapped(tmp_path):
    sender = SharedMemorySender(SIZE)
    path = tmp_path / "plain"
    path.write_bytes(bytes(ALIGNMENT + SIZE))
    with path.open("r+b") as plain, pytest.raises(WireError, match="not sealed"):
        SharedMemoryReceiver(forged(sender, fd=str(plain.fileno())))
    read, write = os.pipe()
    try:
        with pytest.raises(WireError, match="not a regular file"):
            SharedMemoryReceiver(forged(sender, fd=str(read)))
    finally:
        os.close(read)
        os.close(write)


CHILD = """
import sys
from zpptool.wire.local.shared_memory import SharedMemoryReceiver
receiver = SharedMemoryReceiver(sys.stdin.readline().strip())
held = []
for line in sys.stdin:
    ticket, nbytes = map(int, line.split())
    held.append(receiver.get(ticket, nbytes))
    print(bytes(held[-1][:4]).decode(), flush=True)
"""

PARENT = """
import subprocess, sys
from zpptool.wire.local.shared_memory import SharedMemorySender
sender = SharedMemorySender(8 << 20)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(sender.offer, file=child.stdin, flush=True)
while not sender.ready: pass
for number in range(3):
    print(sender.put(b"%04d" % number * (256 << 10)), 1 << 20, file=child.stdin, flush=True)
    assert child.stdout.readline() == "%04d\\n" % number
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(60)
def test_killing_both_processes_leaves_nothing_behind():
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        maps = Path(f"/proc/{child}/maps").read_text()
        assert "/memfd:zpptool (deleted)" in maps
        os.kill(child, signal.SIGKILL)
        parent.kill()
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    assert not [path for path in after - before if "zpp" in path.name]


@given(st.lists(st.tuples(st.integers(1, 5 * ALIGNMENT), st.integers(0, 7)), max_size=60))
def test_blocks_never_overlap(steps):
    size, slots = 16 * ALIGNMENT, 6
    arena, released = Arena(size, slots), [0] * slots
    out: list[Block] = []
    for nbytes, choice in steps:
        if choice < len(out):
            block = out.pop(choice)
            released[block.slot] = block.generation
        block = arena.take(nbytes, released)
        if block is not None:
            assert block.offset % ALIGNMENT == 0
            assert block.offset + nbytes <= size
            for other in out:
                assert other.slot != block.slot
                assert other.offset + other.nbytes <= block.offset or block.offset + nbytes <= other.offset
            out.append(block)
        else:
            assert len(out) == slots or sum(-(-other.nbytes // ALIGNMENT) for other in out) + nbytes / ALIGNMENT > 5


def test_a_slot_used_again_has_another_generation():
    arena, released = Arena(ALIGNMENT, 1), [0]
    seen = set()
    for _ in range(3):
        block = arena.take(8, released)
        assert block is not None
        seen.add(block.generation)
        assert arena.take(8, released) is None
        released[block.slot] = block.generation
    assert len(seen) == 3
    assert 0 not in seen
    assert max(seen) < GENERATIONS
