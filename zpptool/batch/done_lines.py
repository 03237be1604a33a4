# SPDX-License-Identifier: Apache-2.0
"""Which lines of an input are done: one bit a line, so that ten million lines take 1.25 MB."""

from __future__ import annotations


class DoneLines:
    """A set of line numbers.

    Attributes:
        count: how many lines are in it.
    """

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, number: int) -> bool:
        """Add a line; return whether it was not in the set before."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), len(self._bits) // 8)))
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self.count += 1
        return True

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))
