# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a shared segment are whose: a first-fit allocator, apart from any memory.

The invariant: two blocks that are out never overlap, and a block is out from `take` until the other side's word for it
says its generation. Each use of a slot has another generation, so a word left over from an earlier use releases
nothing. Blocks come back in any order: one that the receiver keeps holds up no other.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 4096
"""Blocks begin at pages, so that a tensor of any dtype is aligned and no two blocks share a cache line."""


GENERATIONS = 1 << 32
"""Generations are 1 to one less than this, and then begin again."""


class Block(NamedTuple):
    """Bytes that are out."""

    offset: int
    nbytes: int
    slot: int
    generation: int


class Arena:
    """Blocks within `size` bytes, at most `slots` of them at a time.

    Args:
        size: bytes to hand out.
        slots: how many blocks may be out.
    """

    def __init__(self, size: int, slots: int) -> None:
        self._size = size
        self._out: list[Block] = []  # by offset
        self._free_slots = list(range(slots))
        self._generations = [0] * slots

    def take(self, nbytes: int, released: Sequence[int]) -> Block | None:
        """A block of that size, or None when there is no room for it now.

        Args:
            released: for each slot the generation that the other side has released last.
        """
        self._reclaim(released)
        if not self._free_slots:
            return None
        start = 0
        for block in self._out:
            if block.offset - start >= nbytes:
                break
            start = -(-(block.offset + block.nbytes) // ALIGNMENT) * ALIGNMENT
        if self._size - start < nbytes:
            return None
        slot = self._free_slots.pop()
        self._generations[slot] = self._generations[slot] % (GENERATIONS - 1) + 1
        taken = Block(start, nbytes, slot, self._generations[slot])
        insort(self._out, taken)
        return taken

    def give_back(self, block: Block) -> None:
        """A block that was never told to the other side."""
        self._out.remove(block)
        self._free_slots.append(block.slot)

    def _reclaim(self, released: Sequence[int]) -> None:
        kept: list[Block] = []
        for block in self._out:
            if released[block.slot] == block.generation:
                self._free_slots.append(block.slot)
            else:
                kept.append(block)
        self._out = kept
