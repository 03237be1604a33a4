# SPDX-License-Identifier: Apache-2.0
"""Memory that large frames are received into, reused when no view of it is left.

The invariant: memory is handed out again only after the last view of it was released, and at most `keep_bytes` are kept
unused (in addition to what was released since the last `take`). Fresh memory costs a page fault for each page of a
frame, as much as receiving it; reused memory costs none.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

KEEP_BYTES = 256 << 20
_POOLED_FROM_BYTES = 256 << 10
_WASTE = 2
"""Memory of up to this many times a frame's size is used for it."""


class BufferPool:
    """The receive memory of one link. One thread takes; any thread may release views.

    Args:
        keep_bytes: how much unused memory is kept.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._idle: list[mmap.mmap] = []  # the longest unused first

    def take(self, nbytes: int) -> memoryview:
        """Writable memory of that size, with arbitrary content."""
        if nbytes < _POOLED_FROM_BYTES:
            return memoryview(bytearray(nbytes))
        memory = self._reusable(nbytes) or _fresh(nbytes)
        taken = (ctypes.c_ubyte * nbytes).from_buffer(memory)
        # `append` is all that happens in the thread that drops the last view, at any moment.
        weakref.finalize(taken, self._idle.append, memory).atexit = False
        return memoryview(taken).cast("B")

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept unused."""
        return sum(map(len, tuple(self._idle)))

    def _reusable(self, nbytes: int) -> mmap.mmap | None:
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
