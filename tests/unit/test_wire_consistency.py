# SPDX-License-Identifier: Apache-2.0
"""Tensors keep dtype, rank and width within an epoch; the number of tokens may change."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from zpptool.wire.link_errors import WireError
from zpptool.wire.message.consistency import TensorSchema


class Like(NamedTuple):
    """The attributes of a tensor that are checked."""

    dtype: str
    shape: tuple[int, ...]


STATES = {"hidden_states": Like("bfloat16", (7, 64)), "mask": Like("int64", (7,)), "call": 3}


@pytest.fixture
def schema_of_epoch_4() -> TensorSchema:
    schema = TensorSchema()
    schema.check(4, STATES)
    return schema


@pytest.mark.parametrize(
    "received",
    [STATES, {"hidden_states": Like("bfloat16", (1, 64))}, {"mask": Like("int64", (900,))}, {"call": 5}, {},
     {"residual": Like("float32", (1, 2, 3))}],
)  # fmt: skip
def test_what_may_change_may_change(schema_of_epoch_4: TensorSchema, received: dict[str, object]) -> None:
    schema_of_epoch_4.check(4, received)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (Like("float32", (7, 64)), "is float32 of rank 2 and width 64, and was bfloat16 of rank 2 and width 64"),
        (Like("bfloat16", (7, 65)), "of rank 2 and width 65"),
        (Like("bfloat16", (1, 7, 64)), "of rank 3 and width 64"),
        (Like("bfloat16", (64,)), "bfloat16 of rank 1, and was"),
    ],
)
def test_what_may_not_change_is_refused_by_name(schema_of_epoch_4: TensorSchema, changed: Like, expected: str) -> None:
    with pytest.raises(WireError, match="'hidden_states'") as refused:
        schema_of_epoch_4.check(4, {"hidden_states": changed})
    assert expected in refused.value.message
    assert "in epoch 4" in refused.value.message
    schema_of_epoch_4.check(4, STATES)


def test_another_epoch_settles_anew(schema_of_epoch_4: TensorSchema) -> None:
    schema_of_epoch_4.check(5, {"hidden_states": Like("float32", (1, 2, 3))})
    with pytest.raises(WireError):
        schema_of_epoch_4.check(5, STATES)
