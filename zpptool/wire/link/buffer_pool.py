# SPDX-License-Identifier: Apache-2.0
"""Memory that large frames are received into, used again when nobody looks at it any more.

The invariant: memory is handed out again only after the last view of it has gone, and at most `keep_bytes` wait unused
(beside what came back since the last `take`). Fresh memory costs a page fault for each page of a frame, as much as
receiving it; memory that was used before costs none.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

KEEP_BYTES = 256 << 20
_POOLED_FROM_BYTES = 256 << 10
_WASTE = 2
"""Memory of up to this many times the size is used for a frame."""


class Pool:
    """The memory of one link. One thread takes; views may go in any."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._idle: list[mmap.mmap] = []  # the longest unused first

    def take(self, nbytes: int) -> memoryview:
        """Writable bytes of that size, with any content."""
        if nbytes < _POOLED_FROM_BYTES:
            return memoryview(bytearray(nbytes))
        memory = self._used_before(nbytes) or _fresh(nbytes)
        taken = (ctypes.c_ubyte * nbytes).from_buffer(memory)
        # `append` is all that happens in whatever thread drops the last view, at whatever moment.
        weakref.finalize(taken, self._idle.append, memory).atexit = False
        return memoryview(taken).cast("B")

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait unused."""
        return sum(map(len, tuple(self._idle)))

    def _used_before(self, nbytes: int) -> mmap.mmap | None:
        found = None
        for memory in tuple(self._idle):
            if nbytes <= len(memory) <= nbytes * _WASTE:
                found = memory
        if found is not None:
            self._idle.remove(found)
        while self.idle_bytes > self._keep_bytes:
            del self._idle[0]
        return found


def _fresh(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
