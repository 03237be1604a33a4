# SPDX-License-Identifier: Apache-2.0
"""Frames in memory that two processes on one host share; the messages carry only tickets for them.

The invariant: the segment is a memfd, so it has no name that could outlive its processes however they end; its size is
sealed and its pages are allocated before they are written, so that neither side can be hit by SIGBUS. The sender uses
it only after the receiver has mapped it, found the token that the welcome names, and set a flag in it. A view is handed
out only for the generation that its ticket names, and the block is not used again before the view is released.

The segment: page 0 holds the token (16 bytes), then 64-bit words: whether the receiver has mapped it, and for each slot
the generation that was put last and the one that was released last. The blocks begin at page 1.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import stat
import weakref
from contextlib import suppress
from pathlib import Path

from zpptool.wire.link_errors import WireError
from zpptool.wire.local.arena import ALIGNMENT, GENERATIONS, Arena
from zpptool.wire.message.framing import Buffer

SHARED_BYTES = 256 << 20
"""The size of one link's segment: two steps of 8192 tokens of two 4096-wide bf16 tensors. Its memory grows with use."""
SLOTS = 64
_TOKEN_BYTES = 16
_MAPPED = _TOKEN_BYTES // 8
_GIVEN = _MAPPED + 1
_RELEASED = _GIVEN + SLOTS
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def this_host() -> str | None:
    """The boot id of the running system, which differs on every host. None where there is no memfd."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


class SharedMemorySender:
    """The sender's end: creates the segment, and puts frames into it while there is room.

    Args:
        size: bytes for frames.

    Raises:
        OSError: this system has no memfd, or no memory.
    """

    def __init__(self, size: int = SHARED_BYTES) -> None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._fd = os.memfd_create("zpptool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, ALIGNMENT + size)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        self._allocated = 0
        self._allocate(ALIGNMENT)
        self._bytes = memoryview(mmap.mmap(self._fd, ALIGNMENT + size))
        self._words = self._bytes[:ALIGNMENT].cast("Q")
        self._bytes[:_TOKEN_BYTES] = token
        self._arena = Arena(size, SLOTS)
        self.offer = f"{os.getpid()}:{self._fd}:{size}:{token.hex()}"

    @property
    def ready(self) -> bool:
        """Whether the receiver has mapped the segment."""
        return bool(self._words[_MAPPED])

    def put(self, frame: Buffer) -> int | None:
        """Copy a frame into the segment; its ticket, or None while there is no room for it."""
        view = memoryview(frame).cast("B")
        block = self._arena.take(view.nbytes, self._words[_RELEASED : _RELEASED + SLOTS])
        if block is None:
            return None
        start = ALIGNMENT + block.offset
        try:
            self._allocate(start + view.nbytes)
        except OSError:  # the system is short of memory: leave it what it has
            self._arena.give_back(block)
            return None
        self._bytes[start : start + view.nbytes] = view
        self._words[_GIVEN + block.slot] = block.generation
        return block.slot << 56 | block.offset // ALIGNMENT << 32 | block.generation

    def close(self) -> None:
        """Put nothing more. The memory is freed with the receiver's last view of it."""
        self._words[_MAPPED] = 0

    def _allocate(self, end: int) -> None:
        """Allocate the pages up to `end` now: that may fail here, where a later page fault would kill the process."""
        if end > self._allocated:
            os.posix_fallocate(self._fd, self._allocated, end - self._allocated)
            self._allocated = end


class SharedMemoryReceiver:
    """The receiver's end: maps the sender's segment.

    Args:
        offer: from the sender's welcome.

    Raises:
        WireError: the segment cannot be mapped: the sender is on another host or in another container, belongs to
            another user, or the file there is not the segment that was offered.
    """

    def __init__(self, offer: str) -> None:
        try:
            pid, number, size_text, token = offer.split(":")
            size, path = ALIGNMENT + int(size_text), f"/proc/{int(pid)}/fd/{int(number)}"
        except ValueError:
            raise WireError(f"an offer of shared memory that cannot be parsed: {offer[:80]!r}.") from None
        try:
            self._map = _map(path, size, token)
        except OSError as error:
            raise WireError(f"the sender's shared memory cannot be opened: {error.strerror}.") from error
        self._size = size
        self._words = memoryview(self._map)[:ALIGNMENT].cast("Q")
        self._held: set[int] = set()
        self._words[_MAPPED] = 1

    def get(self, ticket: int, nbytes: int) -> memoryview:
        """The block of a ticket, in place."""
        slot, generation = ticket >> 56, ticket % GENERATIONS
        offset = ALIGNMENT * (1 + (ticket >> 32) % (1 << 24))
        if slot >= SLOTS or nbytes < 1 or offset + nbytes > self._size:
            raise WireError(f"ticket {ticket:#x} for {nbytes} bytes lies outside the shared memory.")
        if slot in self._held or not generation or self._words[_GIVEN + slot] != generation:
            raise WireError(f"ticket {ticket:#x} is not the one that shared memory holds in slot {slot} now.")
        self._held.add(slot)
        block = (ctypes.c_ubyte * nbytes).from_buffer(self._map, offset)
        weakref.finalize(block, _release, self._words, self._held, slot, generation).atexit = False
        return memoryview(block).cast("B")

    def close(self) -> None:
        """Get nothing more. (The mapping is released with its last view.)"""
        self._words[_MAPPED] = 0


def _release(words: memoryview, held: set[int], slot: int, generation: int) -> None:
    held.discard(slot)
    words[_RELEASED + slot] = generation


def _map(path: str, size: int, token: str) -> mmap.mmap:
    """Map the file at `path` if it is a sealed memfd of that size and token.

    `path` comes from the peer and is not trusted: it is not opened unless it is a plain file, so that opening it can
    neither trigger a device nor block on a pipe.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise WireError("the sender's shared memory is not a regular file.")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sealed = 0
        with suppress(OSError):  # no memfd
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if sealed & _SEALS != _SEALS or os.fstat(fd).st_size != size:
            raise WireError("the sender's shared memory is not sealed at the size it was offered with.")
        if os.pread(fd, _TOKEN_BYTES, 0).hex() != token:
            raise WireError("the sender's shared memory holds another token: it is another process's.")
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
