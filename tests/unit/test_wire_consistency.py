# SPDX-License-Identifier: Apache-2.0
"""Tensors keep dtype, rank and width within an epoch; how many tokens there are is free."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from zpptool.wire.link_errors import WireError
from zpptool.wire.message.consistency import TensorSchema


class Like(NamedTuple):
    """As much of a tensor as the rule looks at."""

    dtype: str
    shape: tuple[int, ...]


STATES = {"hidden_states": Like("bfloat16", (7, 64)), "mask": Like("int64", (7,)), "call": 3}


@pytest.fixture
def settled() -> TensorSchema:
    schema = TensorSchema()
    schema.check(4, STATES)
    return schema


@pytest.mark.parametrize(
    "received",
    [STATES, {"hidden_states": Like("bfloat16", (1, 64))}, {"mask": Like("int64", (900,))}, {"call": 5}, {},
     {"residual": Like("float32", (1, 2, 3))}],
)  # fmt: skip
def test_what_may_change_may_change(settled: TensorSchema, received: dict[str, object]) -> None:
    settled.check(4, received)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (Like("float32", (7, 64)), "is float32 of rank 2 and width 64, and was bfloat16 of rank 2 and width 64"),
        (Like("bfloat16", (7, 65)), "of rank 2 and width 65"),
        (Like("bfloat16", (1, 7, 64)), "of rank 3 and width 64"),
        (Like("bfloat16", (64,)), "bfloat16 of rank 1, and was"),
    ],
)
def test_what_may_not_change_is_refused_by_name(settled: TensorSchema, changed: Like, told: str) -> None:
    with pytest.raises(WireError, match="'hidden_states'") as refused:
        settled.check(4, {"hidden_states": changed})
    assert told in refused.value.message
    assert "in epoch 4" in refused.value.message
    settled.check(4, STATES)


def test_another_epoch_settles_anew(settled: TensorSchema) -> None:
    settled.check(5, {"hidden_states": Like("float32", (1, 2, 3))})
    with pytest.raises(WireError):
        settled.check(5, STATES)
