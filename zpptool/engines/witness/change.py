# SPDX-License-Identifier: Apache-2.0
"""What was done to a tensor, in words: the simplest change that makes one of two tensors the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from zpptool.engines.witness.machine import dtype_name
from zpptool.witness.bits import flipped, ulp_distance
from zpptool.witness.row_hash import hash_rows

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Element:
    """The first element that differs.

    Attributes:
        index: its place in the tensor.
        expected_bits, got_bits: the bit patterns, hexadecimal.
        expected, got: the numbers.
        ulp: how many representable numbers lie between them; None where that is not known.
        absolute: the difference.
        count: how many elements of the tensor differ.
    """

    index: tuple[int, ...]
    expected_bits: str
    got_bits: str
    expected: float
    got: float
    ulp: int | None
    absolute: float
    count: int


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(torch.equal(_bits(first), _bits(second)))


def first_element(expected: Tensor, got: Tensor) -> Element | None:
    """The first element that differs; None if there is none, or the tensors have different shapes or dtypes."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return None
    theirs, ours = _bits(expected).flatten(), _bits(got).flatten()
    places = (theirs != ours).nonzero().flatten()
    if not len(places):
        return None
    place = int(places[0])
    width = 8 * expected.element_size()
    patterns = [int(bits[place]) & ((1 << width) - 1) for bits in (theirs, ours)]
    numbers = [float(tensor.flatten()[place]) for tensor in (expected, got)]
    return Element(
        index=_index(place, expected.shape),
        expected_bits=f"{patterns[0]:#0{width // 4 + 2}x}",
        got_bits=f"{patterns[1]:#0{width // 4 + 2}x}",
        expected=numbers[0],
        got=numbers[1],
        ulp=ulp_distance(dtype_name(expected.dtype), *patterns),
        absolute=abs(numbers[0] - numbers[1]),
        count=len(places),
    )


def change_in_words(expected: Tensor, got: Tensor, others: Mapping[str, Tensor] | None = None) -> str:
    """What was done to `expected` to make it `got`.

    Args:
        expected: of the unsplit model.
        got: of the pipeline; not the same.
        others: what it may have been taken for, by name: the tensors of other layers, steps and requests.
    """
    for name, other in (others or {}).items():
        if same(other, got):
            return f"is that of {name}"
    if expected.dtype != got.dtype:
        return f"has the dtype {dtype_name(got.dtype)} instead of {dtype_name(expected.dtype)}"
    for words, changed in _candidates(expected):
        if same(changed, got):
            return words
    if expected.shape != got.shape:
        return _shapes(expected, got)
    return _elements(expected, got)


def _candidates(expected: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Whole changes of a tensor, the likeliest first."""
    yield "is all zeros", torch.zeros_like(expected)
    if expected.dim() >= 2:
        if expected.shape[-1] == expected.shape[-2]:
            yield "is transposed", expected.transpose(-1, -2).contiguous()
        yield "has its rows in reverse order", expected.flip(-2)
        yield "has its rows shifted by one", expected.roll(1, -2)
        yield "has its rows shifted by one", expected.roll(-1, -2)
        half = expected.shape[-2] // 2
        yield "has its halves exchanged", torch.cat((expected[..., half:, :], expected[..., :half, :]), -2)
    if expected.dim():
        yield "has its elements in reverse order", expected.flip(-1)
        yield "has the elements of its rows shifted by one", expected.roll(1, -1)
        half = expected.shape[-1] // 2
        yield "has the halves of its rows exchanged", torch.cat((expected[..., half:], expected[..., :half]), -1)
    if expected.is_floating_point():
        yield "is negated", -expected
        for dtype in _NARROW:
            if dtype is not expected.dtype:
                yield f"was rounded through {dtype_name(dtype)}", expected.to(dtype).to(expected.dtype)
    if expected.element_size() > 1:
        swapped = expected.contiguous().view(torch.uint8).view(-1, expected.element_size()).flip(1).contiguous()
        yield "has its bytes in reverse order", swapped.view(expected.dtype).view(expected.shape)


def _shapes(expected: Tensor, got: Tensor) -> str:
    if expected.dim() == got.dim():
        for axis in range(expected.dim()):
            length = got.shape[axis]
            if length < expected.shape[axis]:
                missing = expected.shape[axis] - length
                for start, words in ((0, "the last"), (missing, "the first")):
                    if same(expected.narrow(axis, start, length), got):
                        return f"lacks {words} {missing} of {expected.shape[axis]} entries"
    return f"has the shape {list(got.shape)} instead of {list(expected.shape)}"


def _elements(expected: Tensor, got: Tensor) -> str:
    first = first_element(expected, got)
    assert first is not None
    if first.count == 1:
        kind = flipped(dtype_name(expected.dtype), int(first.expected_bits, 16), int(first.got_bits, 16))
        if kind is not None:
            return f"has one flipped bit: {kind}"
        return "has one other element"
    for describe in (_permuted_rows, _scaled, _offset):
        words = describe(expected, got)
        if words:
            return words
    rows = _differing_rows(expected, got)
    if rows is not None and len(rows) < expected.shape[-2]:
        zero = " and are zero" if not bool(got[..., rows, :].any()) else ""
        return f"differs in {len(rows)} of {expected.shape[-2]} rows{zero}"
    return f"differs in {first.count} of {expected.numel()} elements"


def _permuted_rows(expected: Tensor, got: Tensor) -> str:
    if expected.dim() < 2 or expected.shape[-2] < 2:
        return ""
    theirs, ours = (hash_rows(tensor.reshape(-1, tensor.shape[-1])) for tensor in (expected, got))
    if not torch.equal(theirs.sort().values, ours.sort().values):
        return ""
    moved = int((theirs != ours).sum())
    in_each = moved // prod(expected.shape[:-2])
    return "has two rows exchanged" if in_each == 2 else f"has its rows in another order ({moved} moved)"


def _scaled(expected: Tensor, got: Tensor) -> str:
    if not expected.is_floating_point():
        return ""
    wide, other = expected.double(), got.double()
    factor = float((wide * other).sum() / (wide * wide).sum()) if bool(wide.any()) else 0.0
    tolerance = 4 * torch.finfo(expected.dtype).eps
    is_scaled = factor and torch.allclose(wide * factor, other, rtol=tolerance, atol=0)
    return f"is scaled by {factor:.6g}" if is_scaled else ""


def _offset(expected: Tensor, got: Tensor) -> str:
    apart = (got.double() - expected.double()).flatten()
    is_offset = not expected.is_floating_point() and bool((apart == apart[0]).all())
    return f"is offset by {int(apart[0])}" if is_offset else ""


def _differing_rows(expected: Tensor, got: Tensor) -> list[int] | None:
    if expected.dim() < 2:
        return None
    unequal = (_bits(expected) != _bits(got)).any(dim=-1)
    rows: list[int] = unequal.reshape(-1, unequal.shape[-1]).any(dim=0).nonzero().flatten().tolist()
    return rows


def _bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a tensor's elements as integers."""
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()])


def _index(place: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for axis in range(len(shape)):
        inner = prod(shape[axis + 1 :])
        index.append(place // inner)
        place %= inner
    return tuple(index)
