# SPDX-License-Identifier: Apache-2.0
"""Nested values with tensors in them as the flat entries of a message, and back.

A message carries tensors by name and plain values beside them. So the tensors of a tree get names, and its structure
is an entry of its own, in which a name and a shape stand for a tensor. A link refuses a tensor whose dtype, rank or
width differs from that of the same name in earlier messages, while the tensors of a tree may grow from step to step. So
the name has the dtype, and each tensor is sent as one row of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zpptool.errors import invalid_error

_TENSOR, _LIST, _TUPLE = "t", "l", "u"


def to_entries(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a message that carry these values.

    Args:
        name: of the entry with the structure, which begins the names of the tensors.
        values: tensors, plain values, and lists, tuples and dicts of them.

    Raises:
        ZppError: (INVALID) a value holds something else, which is named.
    """
    rows: dict[str, Tensor] = {}
    structure = {key: _structure(name, key, value, rows) for key, value in values.items()}
    return {name: structure, **rows}


def from_entries(name: str, message: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that a message carries under a name; None where it has none."""
    structure = message.get(name)
    if structure is None:
        return None
    return {key: _value(value, message) for key, value in structure.items()}


def holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor, or a container that has one."""
    if isinstance(value, dict):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_tensors, value))
    return isinstance(value, Tensor)


def same_values(one: Any, other: Any) -> bool:
    """Whether two trees are equal, their tensors bit by bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_values(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_values, one, other))
    return bool(one == other)


def _structure(name: str, key: str, value: Any, rows: dict[str, Tensor]) -> Any:
    """The structure of a value in plain terms; its tensors are added to `rows`."""
    if isinstance(value, Tensor):
        row = f"{name}.{len(rows)}.{str(value.dtype).removeprefix('torch.')}"
        rows[row] = value.reshape(-1)
        return {_TENSOR: [row, *value.shape]}
    if type(value) in (list, tuple):
        kind = _LIST if type(value) is list else _TUPLE
        return {kind: [_structure(name, key, entry, rows) for entry in value]}
    if type(value) is dict and all(type(entry) is str for entry in value):
        return [[entry, _structure(name, key, inner, rows)] for entry, inner in value.items()]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise invalid_error(f"{key} holds a {type(value).__name__}, which stages cannot pass on")


def _value(structure: Any, message: Mapping[str, Any]) -> Any:
    """The value with this structure."""
    if isinstance(structure, list):
        return {key: _value(entry, message) for key, entry in structure}
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == _TENSOR:
        row, *shape = content
        return message[row].reshape(shape)
    entries = [_value(entry, message) for entry in content]
    return entries if kind == _LIST else tuple(entries)
