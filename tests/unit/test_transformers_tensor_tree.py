# SPDX-License-Identifier: Apache-2.0
"""Nested values with tensors cross a message unchanged, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from zpptool.engines.transformers.tensor_tree import from_entries, same_values, to_entries  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402
from zpptool.wire.message import tensors  # noqa: E402

pytestmark = pytest.mark.torch

ARGUMENTS: dict[str, Any] = {
    "position_ids": torch.arange(6).view(3, 1, 2),
    "attention_mask": {"full_attention": None, "sliding_attention": torch.ones(1, 1, 2, 2, dtype=torch.bool)},
    "deepstack_visual_embeds": [torch.rand(2, 4), torch.rand(2, 4)],
    "position_embeddings": (torch.rand(2), torch.rand(2)),
    "visual_pos_masks": None,
}


def test_values_cross_a_message_unchanged() -> None:
    packed = tensors.pack(to_entries("given", ARGUMENTS))
    arrived = from_entries("given", tensors.unpack(packed.header, packed.frames))
    assert same_values(arrived, ARGUMENTS)
    assert arrived is not None
    assert type(arrived["position_embeddings"]) is tuple


def test_a_message_without_them_has_none() -> None:
    assert from_entries("given", {"hidden_states": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    "other",
    [
        {"position_ids": torch.arange(6).view(3, 1, 2) + 1},
        {"position_ids": torch.arange(6.0).view(3, 1, 2)},
        {"position_ids": None},
        {"deepstack_visual_embeds": ARGUMENTS["deepstack_visual_embeds"][:1]},
        {"another": None},
    ],
)
def test_a_difference_is_seen(other: dict[str, Any]) -> None:
    assert not same_values({**ARGUMENTS, **other}, ARGUMENTS)


def test_what_a_message_cannot_carry_is_refused_by_name() -> None:
    with pytest.raises(ZppError, match="window holds a slice, which stages cannot pass on") as caught:
        to_entries("given", {"window": [torch.zeros(1), slice(1)]})
    assert caught.value.exit_code == ExitCode.INVALID


def test_every_tensor_of_a_name_has_one_dtype_rank_and_width() -> None:
    """A link refuses a name that changes them, and the tensors of a tree grow with the sequence."""
    kinds: dict[str, set[tuple[object, int, int]]] = {}
    for length in (3, 1):
        for values in ({"mask": torch.ones(1, 1, length, length)}, {"mask": torch.ones(1, length, dtype=torch.bool)}):
            for name, value in to_entries("given", values).items():
                if isinstance(value, torch.Tensor):
                    width = value.shape[-1] if value.dim() > 1 else 0
                    kinds.setdefault(name, set()).add((value.dtype, value.dim(), width))
    assert all(len(found) == 1 for found in kinds.values()), kinds
