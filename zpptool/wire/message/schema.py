# SPDX-License-Identifier: Apache-2.0
"""Which tensors a message holds and where their bytes are: planned once for each set of names, dtypes and shapes.

The invariant: the position of every tensor follows from the schema alone (`lay_out`), by one rule on both ends, so a
header cannot point outside its frames or at the same bytes twice. A schema is checked against the limits before any of
its numbers is used. Plans are cached for the schemas seen last, since a model repeats the same few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zpptool.errors import ExitCode, ZppError
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Limits

if TYPE_CHECKING:
    import torch

JOIN_BELOW_BYTES = 128 << 10
"""Tensors of fewer bytes in total share one frame: copying them costs less than sending a frame each."""
ALIGNMENT = 64
PLANS_KEPT = 128


class TensorSpec(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One tensor: its name, its dtype as torch prints it without `torch.`, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Schema(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """All tensors of a message, in order; `joined` when they share one frame."""

    joined: bool
    tensors: tuple[TensorSpec, ...]


class Place(NamedTuple):
    """The position of one tensor; `strides` are those of contiguous elements."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    elements: int
    frame: int
    offset: int
    nbytes: int


class Plan(NamedTuple):
    """A schema prepared for packing or unpacking. `itemsize` is that of all tensors, 1 where they differ; `dtype` that
    of all, None where they differ or one has no elements."""

    schema: bytes
    joined: bool
    places: tuple[Place, ...]
    frame_bytes: tuple[int, ...]
    nbytes: int
    itemsize: int
    dtype: torch.dtype | None


@cache
def dtypes() -> dict[str, torch.dtype]:
    """Every dtype of this torch that plain bytes represent, by name: all but the quantised ones, which need a scale.

    Raises:
        ZppError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ZppError(
            "Tensors need torch, which is not installed.",
            "Install zpptool[transformers] or zpptool[vllm].",
            ExitCode.FAILURE,
        ) from error

    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    names = {str(dtype).removeprefix("torch."): dtype for dtype in found}
    return {name: dtype for name, dtype in names.items() if not name.startswith(("qint", "quint"))}


@cache
def _dtype_names() -> dict[torch.dtype, str]:
    return {dtype: name for name, dtype in dtypes().items()}


@lru_cache(PLANS_KEPT)
def plan_to_send(tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> Plan:
    """The plan for these names, dtypes and shapes.

    Raises:
        WireError: a dtype cannot be sent.
    """
    names = _dtype_names() if tensors else {}
    for name, dtype, _ in tensors:
        if dtype not in names:
            raise WireError(f"tensor {name!r} is {dtype}, which needs more than its bytes.", "Dequantise it first.")
    nbytes = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in tensors)
    specs = tuple(TensorSpec(name, names[dtype], tuple(shape)) for name, dtype, shape in tensors)
    schema = Schema(nbytes < JOIN_BELOW_BYTES, specs)
    return lay_out(msgspec.msgpack.encode(schema), schema)


@lru_cache(PLANS_KEPT)
def plan_to_receive(encoded: bytes, limits: Limits) -> Plan:
    """The plan for a received schema.

    Raises:
        WireError: it is malformed, names an unknown dtype or the same tensor twice, or is beyond the limits.
    """
    try:
        schema = _schema_decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"its tensor header cannot be read: {error}.") from error
    if len(schema.tensors) > limits.max_tensors:
        raise WireError(f"{len(schema.tensors)} tensors, at most {limits.max_tensors} are allowed.")
    seen: set[str] = set()
    for spec in schema.tensors:
        _check_spec(spec, limits)
        if spec.name in seen:
            raise WireError(f"tensor {spec.name!r} comes twice.")
        seen.add(spec.name)
    return lay_out(encoded, schema)


_schema_decoder = msgspec.msgpack.Decoder(Schema)


def _check_spec(spec: TensorSpec, limits: Limits) -> None:
    if spec.dtype not in dtypes():
        raise WireError(f"tensor {spec.name!r} has the dtype {spec.dtype!r}, which this torch does not know.")
    if len(spec.shape) > limits.max_rank:
        raise WireError(f"tensor {spec.name!r} has rank {len(spec.shape)}, at most {limits.max_rank} is allowed.")
    for dim in spec.shape:
        if not 0 <= dim <= limits.max_dim:
            raise WireError(f"tensor {spec.name!r} has a dimension of {dim}, allowed are 0 to {limits.max_dim}.")
    # A tensor without elements still has strides, the product of its other dimensions.
    extent = math.prod(max(dim, 1) for dim in spec.shape) * dtypes()[spec.dtype].itemsize
    if extent > limits.max_frame_bytes:
        raise WireError(f"tensor {spec.name!r} spans {extent} bytes, at most {limits.max_frame_bytes} are allowed.")


def lay_out(encoded: bytes, schema: Schema) -> Plan:
    """Joined: back to back in one frame, each at a multiple of `ALIGNMENT`. Otherwise: one frame each, in order."""
    places: list[Place] = []
    sizes: list[int] = []
    end = 0
    for index, spec in enumerate(schema.tensors):
        dtype = dtypes()[spec.dtype]
        elements = math.prod(spec.shape)
        nbytes = elements * dtype.itemsize
        offset = -(-end // ALIGNMENT) * ALIGNMENT if schema.joined else 0
        strides = tuple(math.prod(spec.shape[axis + 1 :]) for axis in range(len(spec.shape)))
        frame = 0 if schema.joined else index
        places.append(Place(spec.name, dtype, spec.shape, strides, elements, frame, offset, nbytes))
        sizes.append(nbytes)
        end = offset + nbytes
    if schema.joined:
        frame_bytes: Sequence[int] = (end,) if places else ()
    else:
        frame_bytes = sizes
    widths = {place.dtype.itemsize for place in places}
    itemsize = widths.pop() if len(widths) == 1 else 1
    kinds = {place.dtype if place.elements else None for place in places}
    common = kinds.pop() if len(kinds) == 1 else None
    return Plan(encoded, schema.joined, tuple(places), tuple(frame_bytes), sum(sizes), itemsize, common)
