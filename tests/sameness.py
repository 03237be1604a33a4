# SPDX-License-Identifier: Apache-2.0
"""Compares two control objects field by field, including tensors and arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import torch


def differences(one: Any, other: Any, where: str = "it") -> list[str]:
    """The places where two values differ; empty if they are equal."""
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} became {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [where]
    names = _fields(one)
    if names is not None:
        pairs = [(getattr(one, name), getattr(other, name), f"{where}.{name}") for name in names]
        return [fault for pair in pairs for fault in differences(*pair)]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: other keys"]
        return [fault for key in one for fault in differences(one[key], other[key], f"{where}[{key!r}]")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: another length"]
        return [
            fault for index, item in enumerate(one) for fault in differences(item, other[index], f"{where}[{index}]")
        ]
    return [] if one == other else [f"{where}: {one!r} became {other!r}"]


def _fields(value: Any) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(value):
        return tuple(field.name for field in dataclasses.fields(value))
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    return getattr(value, "_fields", None)
