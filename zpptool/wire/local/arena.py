# SPDX-License-Identifier: Apache-2.0
"""Allocation within a shared segment: a first-fit allocator, independent of any memory.

The invariant: two allocated blocks never overlap, and a block is allocated from `take` until the other side has
released its generation. Each use of a slot has another generation, so a value left over from an earlier use releases
nothing. Blocks are released in any order: one that the receiver keeps delays no other.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 4096
"""Blocks begin at pages, so that a tensor of any dtype is aligned and no two blocks share a cache line."""

GENERATIONS = 1 << 32
"""Generations count from 1 to one less than this, and then again from 1."""


class Block(NamedTuple):
    """An allocated range of the segment."""

    offset: int
    nbytes: int
    slot: int
    generation: int


class Arena:
    """Blocks within `size` bytes, at most `slots` of them at a time.

    Args:
        size: bytes to allocate from.
        slots: how many blocks may be allocated at a time.
    """

    def __init__(self, size: int, slots: int) -> None:
        self._size = size
        self._allocated: list[Block] = []  # by offset
        self._free_slots = list(range(slots))
        self._generations = [0] * slots

    def take(self, nbytes: int, released: Sequence[int]) -> Block | None:
        """A block of that size, or None when there is no room for it now.

        Args:
            released: for each slot the last generation that the other side has released.
        """
        self._reclaim(released)
        if not self._free_slots:
            return None
        start = 0
        for block in self._allocated:
            if block.offset - start >= nbytes:
                break
            start = -(-(block.offset + block.nbytes) // ALIGNMENT) * ALIGNMENT
        if self._size - start < nbytes:
            return None
        slot = self._free_slots.pop()
        self._generations[slot] = self._generations[slot] % (GENERATIONS - 1) + 1
        taken = Block(start, nbytes, slot, self._generations[slot])
        insort(self._allocated, taken)
        return taken

    def give_back(self, block: Block) -> None:
        """Release a block whose ticket was never sent to the other side."""
        self._allocated.remove(block)
        self._free_slots.append(block.slot)

    def _reclaim(self, released: Sequence[int]) -> None:
        kept: list[Block] = []
        for block in self._allocated:
            if released[block.slot] == block.generation:
                self._free_slots.append(block.slot)
            else:
                kept.append(block)
        self._allocated = kept
