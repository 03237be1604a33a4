# SPDX-License-Identifier: Apache-2.0
"""Nested values with tensors in them as the flat entries of a message, and back.

A message carries tensors by name and plain values beside them. So the tensors of a tree get a name and a number, and
its structure is an entry of its own, in which a number stands for a tensor.
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
        name: of the entry with the structure; the tensors have it too, with a number.
        values: tensors, plain values, and lists, tuples and dicts of them.

    Raises:
        ZppError: (INVALID) a value holds something else, which is named.
    """
    tensors: list[Tensor] = []
    structure = {key: _structure(key, value, tensors) for key, value in values.items()}
    return {name: structure, **{f"{name}.{place}": tensor for place, tensor in enumerate(tensors)}}


def from_entries(name: str, message: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that a message carries under a name; None where it has none."""
    structure = message.get(name)
    if structure is None:
        return None
    return {key: _value(name, value, message) for key, value in structure.items()}


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


def _structure(name: str, value: Any, tensors: list[Tensor]) -> Any:
    """The structure of a value in plain terms; its tensors are appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {_TENSOR: len(tensors) - 1}
    if type(value) in (list, tuple):
        return {_LIST if type(value) is list else _TUPLE: [_structure(name, entry, tensors) for entry in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return [[key, _structure(name, entry, tensors)] for key, entry in value.items()]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise invalid_error(f"{name} holds a {type(value).__name__}, which stages cannot pass on")


def _value(name: str, structure: Any, message: Mapping[str, Any]) -> Any:
    """The value with this structure."""
    if isinstance(structure, list):
        return {key: _value(name, entry, message) for key, entry in structure}
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == _TENSOR:
        return message[f"{name}.{content}"]
    entries = [_value(name, entry, message) for entry in content]
    return entries if kind == _LIST else tuple(entries)
