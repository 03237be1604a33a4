# SPDX-License-Identifier: Apache-2.0
"""A 64-bit hash of the raw bits of each row of a tensor, in which the place of every element counts.

A row is read as words of 64 bits. Each word is combined with a key of its place and passed through a bijection of
64-bit numbers (multiplications by odd constants and shifts, as in splitmix64), and the results are added. So a change
within one word always changes the hash, and any other change goes unnoticed once in 2^64 cases: permuted elements and
negated signs too, which sums and XORs of elements do not show. The hash is computed where the tensor is, in a dozen
integer operations for all rows together. It is no defence against a forger.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor

WORD_BYTES = 8
HASH_BYTES = 8
MASK = (1 << 64) - 1
SKETCH_SIZE = 8
"""The number of projections in a sketch."""
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SHIFT_1, _SHIFT_2, _SHIFT_3 = 30, 27, 31


def mix(value: int) -> int:
    """splitmix64's bijection of 64-bit numbers."""
    value = (value ^ (value >> _SHIFT_1)) * _MIX_1 & MASK
    value = (value ^ (value >> _SHIFT_2)) * _MIX_2 & MASK
    return value ^ (value >> _SHIFT_3)


def signed(value: int) -> int:
    """A 64-bit number as the signed integer with the same bits, which is what torch takes."""
    return value - (1 << 64) if value >> 63 else value


def hash_rows(rows: Tensor) -> Tensor:
    """The hashes of the rows of a tensor.

    Args:
        rows: [rows, ...], of any dtype and on any device.

    Returns:
        [rows], int64, on the same device: the hashes as signed integers.
    """
    words = _words(rows)
    mixed = _mix_in_place(words.add_(_keys(words.shape[1], words.device)[None]))
    total = mixed.sum(dim=1)
    return _mix_in_place(total.add_(signed(_row_seed(rows))))


def hash_tensor(tensor: Tensor) -> int:
    """One hash of a whole tensor, in which its shape counts too."""
    import torch

    rows = tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 and tensor.numel() else tensor.reshape(1, -1)
    shape = torch.tensor(tensor.shape, dtype=torch.int64)
    parts = torch.cat((hash_rows(rows).cpu(), shape))
    return int(hash_rows(parts[None]).item()) & MASK


def hash_integers(values: list[int]) -> int:
    """The hash of a list of integers, each of which counts modulo 2^64."""
    total = sum(mix((value + _key(place)) & MASK) for place, value in enumerate(values))
    return mix((total + mix(len(values) * WORD_BYTES)) & MASK)


def hash_bytes(hashes: Tensor) -> bytes:
    """Hashes as `hash_rows` returns them, as bytes of a record: little-endian, 8 bytes each."""
    return cast(bytes, hashes.cpu().contiguous().numpy().astype("<i8").tobytes())


def sketch_rows(rows: Tensor) -> Tensor:
    """Eight numbers a row that are close if the rows are: its projections on fixed vectors of random signs.

    Args:
        rows: [rows, ...], of floating point.

    Returns:
        [rows, 8], float32, on the CPU.
    """
    flat = rows.reshape(rows.shape[0], -1).float().cpu()
    return flat @ _signs(flat.shape[1])


def _row_seed(rows: Tensor) -> int:
    """A seed from a row's length in bytes, so that a shorter row is not the same as one with zeros at its end."""
    return mix(rows[:1].numel() * rows.element_size())


def _words(rows: Tensor) -> Tensor:
    """A copy of the rows' bits as [rows, words] of int64, with zeros after the last byte of a row."""
    import torch

    flat = rows.detach().reshape(rows.shape[0], -1).contiguous()
    num_bytes = flat.shape[1] * flat.element_size()
    words = torch.zeros((flat.shape[0], -(-num_bytes // WORD_BYTES)), dtype=torch.int64, device=flat.device)
    if num_bytes:
        words.view(torch.uint8)[:, :num_bytes] = flat.view(torch.uint8)
    return words


def _mix_in_place(words: Tensor) -> Tensor:
    """`mix` of every word. torch's shift of int64 keeps the sign, so the upper bits are masked away."""
    for shift, factor in ((_SHIFT_1, _MIX_1), (_SHIFT_2, _MIX_2)):
        words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(signed(factor))
    return words.bitwise_xor_((words >> _SHIFT_3).bitwise_and_((1 << (64 - _SHIFT_3)) - 1))


def _key(place: int) -> int:
    return mix((place + 1) * _GOLDEN & MASK)


@lru_cache(maxsize=64)
def _keys(count: int, device: object) -> Tensor:
    """The keys of the first `count` places."""
    import torch

    places = torch.arange(1, count + 1, dtype=torch.int64) * signed(_GOLDEN)
    return _mix_in_place(places).to(cast(torch.device, device))


@lru_cache(maxsize=64)
def _signs(count: int) -> Tensor:
    """The vectors of random signs, [count, 8]."""
    import torch

    bits = _keys(count * SKETCH_SIZE, torch.device("cpu")) >> 63
    return (bits * 2 + 1).float().view(count, SKETCH_SIZE)
