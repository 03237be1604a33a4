# SPDX-License-Identifier: Apache-2.0
"""vLLM's control objects as bytes, without pickle.

Plain values are encoded as msgpack. An object is encoded as the name of its class and those fields that differ from
their defaults. Only the classes of `_CARRIED` are ever built, and only from data, so bytes from a socket cannot run
code. The fields are read from the class (`dataclasses.fields`, `__struct_fields__`), not listed here: a field that a
later vLLM adds is carried if it holds plain data or a carried class, and refused by name if it does not.
"""

from __future__ import annotations

import dataclasses
import enum
import fractions
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import torch

from zpptool.engines.vllm.compat.control_objects import MultiModalFieldElem, MultiModalKwargsItem, control_classes
from zpptool.errors import ZppError

_TUPLE, _SET, _ARRAY, _TENSOR, _DTYPE, _OBJECT, _ENUM, _FRACTION, _SLICE = range(1, 10)
_NUMBERS = re.compile(r"[<>=|][biufc][0-9]{1,2}")
"""numpy's names of the dtypes of plain numbers."""
_MAX_RANK = 16
_MAX_BYTES = 1 << 32
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}

_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """`value` as bytes.

    Raises:
        ZppError: it holds something that is not carried between stages; the message names the field.
    """
    try:
        return _encoder.encode(_lower(value, "the message"))
    except OverflowError as cause:
        raise ZppError("the message holds an integer of more than 64 bits, which is not carried") from cause


def decode(data: bytes | memoryview) -> Any:
    """The value that `encode` has encoded.

    Raises:
        ZppError: the bytes are no encoded value, or name a class that is not carried.
    """
    try:
        return _decoder.decode(data)
    except ZppError:
        raise
    except Exception as cause:  # malformed bytes: any error of msgpack, a constructor or torch
        raise ZppError(f"a control message's payload cannot be read: {cause!r}") from cause


def _lower(value: Any, where: str) -> Any:
    """`value` in types that msgpack encodes; `where` names its place in the message, for errors."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return value if _all_plain(value) else [_lower(item, where) for item in value]
    if kind is dict:
        if _all_plain(value) and _all_plain(value.values()):
            return value
        return {_lower(key, where): _lower(item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is tuple:
        return _ext(_TUPLE, _lower(list(value), where))
    if kind in (set, frozenset):
        return _ext(_SET, _lower(list(value), where))
    if kind is torch.Tensor:
        return _ext(_TENSOR, _lower_tensor(value))
    if kind is np.ndarray:
        return _ext(_ARRAY, [value.dtype.str, list(value.shape), value.tobytes()])
    if isinstance(value, np.generic):
        return _lower(value.item(), where)
    if kind is torch.dtype:
        return _ext(_DTYPE, str(value).removeprefix("torch."))
    if kind is fractions.Fraction:
        return _ext(_FRACTION, [value.numerator, value.denominator])
    if kind is slice:
        return _ext(_SLICE, [_lower_index(part, where) for part in (value.start, value.stop, value.step)])
    if _CARRIED.get(kind.__name__) is kind:
        if issubclass(kind, enum.Enum):
            return _ext(_ENUM, [kind.__name__, value.name])
        return _ext(_OBJECT, [kind.__name__, _fields_to_send(value, where)])
    raise ZppError(
        f"{where} holds a {kind.__module__}.{kind.__qualname__}, which is not carried between stages",
        "The feature that needs it is not supported across stages.",
    )


def _lower_index(part: Any, where: str) -> int | None:
    """One part of a slice; vLLM also makes slices of tensors with one integer."""
    try:
        return None if part is None else operator.index(part)
    except TypeError as cause:
        raise ZppError(f"{where} holds a slice of {part!r}, which is not carried between stages") from cause


def _all_plain(values: Iterable[Any]) -> bool:
    return _PLAIN.issuperset(map(type, values))


def _ext(code: int, value: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _encoder.encode(value))


def _fields_to_send(value: Any, where: str) -> dict[str, Any]:
    shape = _SHAPES[type(value)]
    sent = {}
    for name, default in shape.defaults.items():
        item = getattr(value, name)
        if item is default or (type(item) in _PLAIN and type(default) is type(item) and item == default):
            continue
        sent[name] = _lower(item, f"{where}.{type(value).__name__}.{name}")
    return sent


def _lower_tensor(tensor: torch.Tensor) -> list[Any]:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), flat.numpy().tobytes()]


def _build_tensor(raw: list[Any]) -> torch.Tensor:
    name, shape, content = _typed(raw, str, list, bytes)
    dtype = _dtype(name)
    _check_extent(shape, dtype.itemsize, content)
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


def _build_array(raw: list[Any]) -> np.ndarray[Any, Any]:
    name, shape, content = _typed(raw, str, list, bytes)
    if not _NUMBERS.fullmatch(name):
        raise ZppError(f"a control message's payload holds an array of {name!r}, which are not numbers")
    dtype = np.dtype(name)
    _check_extent(shape, dtype.itemsize, content)
    return np.frombuffer(content, dtype=dtype).reshape(shape).copy()


def _build_fraction(raw: list[Any]) -> fractions.Fraction:
    """From two integers only: from text a fraction of a billion digits could be made."""
    return fractions.Fraction(*_typed(raw, int, int))


def _build_slice(raw: list[Any]) -> slice:
    if type(raw) is not list or len(raw) != 3 or not all(part is None or type(part) is int for part in raw):
        raise ZppError("a control message's payload holds a slice of something else than three integers or nothing")
    return slice(*raw)


def _typed(raw: Any, *kinds: type) -> list[Any]:
    """A list of values of exactly these types, checked before any of them is used: `bytearray(number)`, for example,
    would allocate that many bytes."""
    if type(raw) is not list or [type(item) for item in raw] != list(kinds):
        raise ZppError("a control message's payload holds an extension whose parts have other types than they should")
    return raw


def _check_extent(shape: list[Any], itemsize: int, content: bytes) -> None:
    """Refuse a shape that the bytes do not fill exactly, or that spans more than a message even without elements."""
    if len(shape) > _MAX_RANK or not all(type(dim) is int and 0 <= dim <= _MAX_BYTES for dim in shape):
        raise ZppError(f"a control message's payload holds an array of an impossible shape, {shape[:_MAX_RANK]}")
    extent = math.prod(max(dim, 1) for dim in shape) * itemsize
    if extent > _MAX_BYTES or math.prod(shape) * itemsize != len(content):
        raise ZppError(f"a control message's payload holds an array of shape {shape} in {len(content)} bytes")


def _build_object(raw: list[Any]) -> Any:
    name, fields = _typed(raw, str, dict)
    return _SHAPES[_carried(name)].build(fields)


def _build_enum(raw: list[Any]) -> enum.Enum:
    name, member = _typed(raw, str, str)
    kind = _carried(name)
    if not issubclass(kind, enum.Enum):
        raise ZppError(f"a control message's payload takes {name} for an enum")
    found: enum.Enum = kind[member]
    return found


def _build(code: int, data: memoryview) -> Any:
    """The value of one msgpack extension."""
    build = _BUILDERS.get(code)
    if build is None:
        raise ZppError(f"a control message's payload holds an extension of an unknown kind, {code}")
    try:
        return build(_decoder.decode(data))
    except ZppError:
        raise
    except Exception as cause:  # malformed bytes: any error of msgpack, a constructor or torch
        raise ZppError(f"a control message's payload cannot be built again: {cause!r}") from cause


_decoder = msgspec.msgpack.Decoder(ext_hook=_build)


def _list(raw: Any) -> list[Any]:
    if type(raw) is not list:
        raise ZppError("a control message's payload makes a tuple or a set of something else than a list")
    return raw


def _dtype(name: str) -> torch.dtype:
    dtype = _DTYPES.get(name) if type(name) is str else None
    if dtype is None:
        raise ZppError(f"a control message's payload names a dtype that torch does not have: {name!r}")
    return dtype


def _carried(name: str) -> Any:
    carried = _CARRIED.get(name)
    if carried is None:
        raise ZppError(f"a control message's payload names a class that is not carried between stages: {name!r}")
    return carried


class _Required:
    """The default of a field that has none: no value is equal to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """How objects of one class are encoded and built.

    Attributes:
        defaults: every field's default. `_Required` for a field without one, which is therefore always sent.
        build: makes an object from the fields that were sent.
    """

    defaults: dict[str, Any]
    build: Callable[[dict[str, Any]], Any]


def _shape_of(kind: type) -> _Shape:
    if dataclasses.is_dataclass(kind):
        return _dataclass_shape(kind)
    if kind is MultiModalKwargsItem:
        return _Shape({"data": _Required}, _build_item)
    if issubclass(kind, msgspec.Struct):
        infos = msgspec.structs.fields(kind)
        defaults = {i.name: _Required if i.default is msgspec.NODEFAULT else i.default for i in infos}
        return _Shape(defaults, lambda fields: kind(**fields))
    named: Any = kind
    return _Shape(
        {name: named._field_defaults.get(name, _Required) for name in named._fields}, lambda fields: kind(**fields)
    )


def _build_item(sent: dict[str, Any]) -> Any:
    """What a model takes of one image, video or sound: tensors by name, and how those of several are put together."""
    (elements,) = _typed([sent.get("data")], dict)
    if sent.keys() != {"data"} or not all(
        type(name) is str and type(element) is MultiModalFieldElem for name, element in elements.items()
    ):
        raise ZppError("a control message's payload makes a multimodal item of something else than named elements")
    return MultiModalKwargsItem(elements)


def _dataclass_shape(kind: type) -> _Shape:
    """Objects are built without `__init__` and `__post_init__`, as pickle does: what those computed was sent."""
    fields = dataclasses.fields(kind)
    defaults = {f.name: _Required if f.default is dataclasses.MISSING else f.default for f in fields}

    def build(sent: dict[str, Any]) -> Any:
        unknown = sent.keys() - defaults.keys()
        if unknown:
            raise ZppError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}: another vLLM version?")
        made: Any = object.__new__(kind)
        for name, default in defaults.items():
            object.__setattr__(made, name, sent.get(name, default))
        return made

    return _Shape(defaults, build)


def _carried_classes() -> dict[str, type]:
    """By name: the classes that vLLM's scheduler and workers pass to each other, and their enums."""
    carried: dict[str, type] = {}
    for kind in control_classes():
        known = carried.setdefault(kind.__name__, kind)
        assert known is kind, f"two control classes are called {kind.__name__}"
    return carried


_CARRIED = _carried_classes()
_SHAPES = {
    kind: _shape_of(kind)
    for kind in _CARRIED.values()
    if not issubclass(kind, enum.Enum) and not inspect.isabstract(kind)
}
_BUILDERS: dict[int, Callable[[Any], Any]] = {
    _TUPLE: lambda raw: tuple(_list(raw)),
    _SET: lambda raw: set(_list(raw)),
    _ARRAY: _build_array,
    _TENSOR: _build_tensor,
    _DTYPE: _dtype,
    _OBJECT: _build_object,
    _ENUM: _build_enum,
    _FRACTION: _build_fraction,
    _SLICE: _build_slice,
}
