# SPDX-License-Identifier: Apache-2.0
"""Two floating-point numbers as bits: which bit differs, and how many representable numbers lie between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: the numbers of bits in all, and of the mantissa."""

    bits: int
    mantissa: int


FORMATS = {
    "float64": Format(64, 52),
    "float32": Format(32, 23),
    "bfloat16": Format(16, 7),
    "float16": Format(16, 10),
    "float8_e4m3fn": Format(8, 3),
    "float8_e5m2": Format(8, 2),
}


def ulp_distance(dtype: str, first: int, second: int) -> int | None:
    """How many steps of the last place lie between two numbers; 0 also between 0 and -0. None where the format is not
    known.

    Args:
        dtype: the name of the format.
        first, second: the bit patterns.
    """
    known = FORMATS.get(dtype)
    return None if known is None else abs(_place(known, first) - _place(known, second))


def flipped(dtype: str, first: int, second: int) -> str | None:
    """The part of the number that its one flipped bit belongs to: `sign bit`, `exponent bit 3`, `mantissa bit 0`.

    Returns:
        None if not exactly one bit differs.
    """
    known, changed = FORMATS.get(dtype), first ^ second
    if changed.bit_count() != 1:
        return None
    bit = changed.bit_length() - 1
    if known is None:
        return f"bit {bit}"
    if bit == known.bits - 1:
        return "sign bit"
    return f"mantissa bit {bit}" if bit < known.mantissa else f"exponent bit {bit - known.mantissa}"


def _place(known: Format, pattern: int) -> int:
    """The number's place among all numbers of the format, in their order; both zeros have 0."""
    sign = 1 << (known.bits - 1)
    return -(pattern & (sign - 1)) if pattern & sign else pattern
