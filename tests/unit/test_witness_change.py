# SPDX-License-Identifier: Apache-2.0
"""What was done to a tensor is named by the simplest change; its first element is given with both bit patterns."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from zpptool.engines.witness.change import change_in_words, first_element, same  # noqa: E402
from zpptool.witness.bits import flipped, ulp_distance  # noqa: E402

pytestmark = pytest.mark.torch
T = torch.Tensor
BEFORE = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


def flip(tensor: T, place: int, bit: int) -> T:
    changed = tensor.clone()
    integers = changed.view(torch.int32 if tensor.element_size() == 4 else torch.int16).view(-1)
    integers[place] ^= -(1 << bit) if bit == 8 * tensor.element_size() - 1 else 1 << bit
    return changed


def with_rows(rows: slice, value: float) -> Callable[[T], T]:
    def change(tensor: T) -> T:
        changed = tensor.clone()
        changed[rows] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: flip(t, 9, 31), "has one flipped bit: sign bit"),
        (lambda t: flip(t, 9, 24), "has one flipped bit: exponent bit 1"),
        (lambda t: flip(t, 9, 0), "has one flipped bit: mantissa bit 0"),
        (lambda t: torch.zeros_like(t), "is all zeros"),
        (lambda t: t.t().contiguous(), "is transposed"),
        (lambda t: t.flip(0), "has its rows in reverse order"),
        (lambda t: t.roll(1, 0), "has its rows shifted by one"),
        (lambda t: t[[1, 0, *range(2, 8)]], "has two rows exchanged"),
        (lambda t: t[[2, 0, 1, *range(3, 8)]], "has its rows in another order (3 moved)"),
        (lambda t: t.roll(4, 1), "has the halves of its rows exchanged"),
        (lambda t: -t, "is negated"),
        (lambda t: t.bfloat16().float(), "was rounded through bfloat16"),
        (lambda t: t.half().float(), "was rounded through float16"),
        (lambda t: t * 1.0078125, "is scaled by 1.00781"),
        (
            lambda t: t.view(torch.uint8).view(-1, 4).flip(1).contiguous().view(torch.float32).view(8, 8),
            "has its bytes",
        ),
        (lambda t: t[:, :6], "lacks the last 2 of 8 entries"),
        (lambda t: t[1:], "lacks the first 1 of 8 entries"),
        (lambda t: t.double(), "has the dtype float64 instead of float32"),
        (with_rows(slice(2, 4), 0.0), "differs in 2 of 8 rows and are zero"),
        (with_rows(slice(2, 3), 5.0), "differs in 1 of 8 rows"),
        (lambda t: OTHER.clone(), "is that of another"),
        (lambda t: t + 1, "differs in 64 of 64 elements"),
    ],
)
def test_a_change_is_named(change: Callable[[T], T], words: str) -> None:
    got = change(BEFORE)
    assert not same(BEFORE, got)
    assert change_in_words(BEFORE, got, {"another": OTHER}).startswith(words)


def test_positions_that_are_off_by_a_number() -> None:
    assert change_in_words(torch.arange(5)[None], torch.arange(5)[None] + 3) == "is offset by 3"


def test_the_first_element_has_both_bit_patterns() -> None:
    element = first_element(BEFORE.bfloat16(), flip(BEFORE.bfloat16(), 10, 15))
    assert element is not None
    assert (element.index, element.count) == ((1, 2), 1)
    assert int(element.expected_bits, 16) ^ int(element.got_bits, 16) == 1 << 15
    assert element.expected == -element.got
    assert element.absolute == abs(element.expected) * 2
    assert first_element(BEFORE, BEFORE.clone()) is None
    assert first_element(BEFORE, BEFORE[:4]) is None


def test_zero_and_minus_zero_are_not_the_same_and_nan_is_itself() -> None:
    assert not same(torch.zeros(2), -torch.zeros(2))
    assert same(torch.full((2,), torch.nan), torch.full((2,), torch.nan))


@given(st.floats(width=32, allow_nan=False), st.integers(0, 31))
def test_one_flipped_bit_is_named_and_nothing_else(number: float, bit: int) -> None:
    (pattern,) = struct.unpack("<I", struct.pack("<f", number))
    named = flipped("float32", pattern, pattern ^ (1 << bit))
    assert named == ("sign bit" if bit == 31 else f"mantissa bit {bit}" if bit < 23 else f"exponent bit {bit - 23}")
    assert flipped("float32", pattern, pattern) is None
    assert flipped("float32", pattern, pattern ^ 3) is None


def test_units_in_the_last_place() -> None:
    one = 0x3F800000
    assert ulp_distance("float32", one, one + 5) == 5
    assert ulp_distance("float32", 0, 0x80000000) == 0
    assert ulp_distance("float32", 1, 0x80000001) == 2
    assert ulp_distance("bfloat16", 0x3F80, 0x3F7F) == 1
    assert ulp_distance("int4", 1, 2) is None
