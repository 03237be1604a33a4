# SPDX-License-Identifier: Apache-2.0
"""The hash of a row changes with every bit and every place, and is the same on every machine."""

from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from zpptool.witness.row_hash import (  # noqa: E402
    MASK,
    hash_bytes,
    hash_integers,
    hash_rows,
    hash_tensor,
    mix,
    sketch_rows,
)

pytestmark = pytest.mark.torch
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64]
dtypes = st.sampled_from(DTYPES)
widths = st.integers(2, 70)
seeds = st.integers(0, 2**32)


def row(seed: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """A row of random values."""
    values = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 50
    return values.to(dtype)


def of(tensor: torch.Tensor) -> int:
    return int(hash_rows(tensor[None]).item())


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().view(torch.uint8)


@given(seeds, widths, dtypes, st.data())
def test_every_bit_counts(seed: int, width: int, dtype: torch.dtype, data: st.DataObject) -> None:
    before = row(seed, width, dtype)
    bit = data.draw(st.integers(0, 8 * before.element_size() * width - 1))
    changed = raw(before)
    changed[bit // 8] ^= 1 << bit % 8
    assert of(before) != of(changed.view(dtype))


@given(seeds, widths, dtypes, st.data())
def test_the_place_of_every_element_counts(seed: int, width: int, dtype: torch.dtype, data: st.DataObject) -> None:
    before = row(seed, width, dtype)
    order = data.draw(st.permutations(range(width)))
    after = before[list(order)]
    assert (of(before) == of(after)) == torch.equal(raw(before), raw(after))
    halves = torch.cat((before[width // 2 :], before[: width // 2]))
    assert (of(before) == of(halves)) == torch.equal(raw(before), raw(halves))


@given(seeds, st.integers(2, 70), st.sampled_from(DTYPES[:4]), st.data())
def test_negated_signs_show(seed: int, width: int, dtype: torch.dtype, data: st.DataObject) -> None:
    """Also an even number of them, and those of two places that are exchanged."""
    before = row(seed, width, dtype)
    places = data.draw(st.sets(st.integers(0, width - 1), min_size=1))
    after = before.clone()
    after[list(places)] *= -1
    assert of(before) != of(after)


@given(seeds, widths, dtypes)
def test_the_length_of_a_row_counts(seed: int, width: int, dtype: torch.dtype) -> None:
    before = row(seed, width, dtype)
    assert of(before) != of(torch.cat((before, torch.zeros(1, dtype=dtype))))
    assert of(before) != of(before[:-1])


@settings(max_examples=30)
@given(seeds, st.integers(1, 5), widths, dtypes)
def test_a_row_has_the_same_hash_wherever_it_lies(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    """Alone, among other rows, at an odd address, and as a view that is not contiguous."""
    together = torch.stack([row(seed + number, width, dtype) for number in range(rows)])
    alone = [of(each) for each in together]
    assert hash_rows(together).tolist() == alone
    shifted = torch.empty(rows * width + 1, dtype=dtype)[1:].view(rows, width)
    shifted.copy_(together)
    assert hash_rows(shifted).tolist() == alone
    assert hash_rows(together.t().contiguous().t()).tolist() == alone
    assert torch.equal(raw(together), raw(torch.stack([row(seed + n, width, dtype) for n in range(rows)]))), "unchanged"


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
def test_integers_are_hashed_as_a_row_of_them(values: list[int]) -> None:
    assert hash_integers(values) == of(torch.tensor(values)) & MASK


def test_the_hash_never_changes() -> None:
    """Files of other machines and releases are compared with these values."""
    assert mix(1) == 0x5692161D100B05E5
    assert hash_integers([1, 2, 3]) == KNOWN[0]
    assert of(torch.arange(5, dtype=torch.bfloat16)) & MASK == KNOWN[1]
    assert hash_bytes(hash_rows(torch.zeros(2, 3))) == hash_bytes(hash_rows(torch.zeros(1, 3))) * 2


KNOWN = (0xCC1EDFA1D3E775B0, 0x4FB119F841B72BED)


def test_no_two_of_many_rows_are_the_same() -> None:
    """All sign patterns of 16 floats: their last bits, sums and XORs mostly coincide."""
    patterns = torch.arange(1 << 16)[:, None] >> torch.arange(16)[None] & 1
    hashes = hash_rows((patterns * 2 - 1).float())
    assert hashes.unique().numel() == 1 << 16
    assert (hashes & 0xFFFFFF).unique().numel() > 0.99 * (1 << 16)


def test_a_whole_tensor_has_one_hash_with_its_shape() -> None:
    tensor = torch.arange(24).view(2, 3, 4)
    assert len({hash_tensor(tensor.view(shape)) for shape in ((2, 3, 4), (2, 12), (4, 6), (24,), (1, 24))}) == 5
    assert hash_tensor(torch.zeros(0, 3)) != hash_tensor(torch.zeros(3, 0))
    assert hash_tensor(torch.tensor(1.0)) != hash_tensor(torch.tensor(2.0))


def test_a_sketch_is_close_where_rows_are() -> None:
    before = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    near, far = sketch_rows(before * 1.001), sketch_rows(before.flip(1))
    sketch = sketch_rows(before)
    assert sketch.shape == (4, 8)
    assert ((near - sketch).norm() / sketch.norm()) < 0.01 < 0.5 < ((far - sketch).norm() / sketch.norm())


def test_hashing_is_quick_enough_to_stay_within_a_step() -> None:
    """What a step of a 135M model records, 60 rows of 576 bf16: well under the 10 ms of the step."""
    rows = torch.randn(60, 576).bfloat16()
    hash_rows(rows)
    began = time.perf_counter()
    for _turn in range(20):
        hash_rows(rows)
    assert (time.perf_counter() - began) / 20 < 0.01
