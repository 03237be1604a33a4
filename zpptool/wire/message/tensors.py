# SPDX-License-Identifier: Apache-2.0
"""A flat dict of tensors and plain values, as the header and the frames of one message, and back.

The invariant: every name arrives with the same dtype, shape and bits (NaN payloads and negative zeros included). Each
tensor arrives contiguous, in memory that nothing else writes to. The header is a msgpack array of two: the schema,
which is encoded once for each set of names, dtypes and shapes, and the plain values. Torch is imported with the first
tensor.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Buffer, Limits
from zpptool.wire.message.schema import PLANS_KEPT, Place, Plan, plan_to_receive, plan_to_send
from zpptool.wire.message.values import NO_VALUES, decode_values, encode_values

if TYPE_CHECKING:
    import torch

_ARRAY_OF_TWO = b"\x92"
_header_decoder = msgspec.msgpack.Decoder(tuple[msgspec.Raw, msgspec.Raw])
_DEFAULT_LIMITS = Limits()
_UNSIGNED: dict[int, Literal["H", "I", "Q"]] = {2: "H", 4: "I", 8: "Q", 16: "Q"}


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor dict ready to be sent.

    Attributes:
        header: the message's header.
        frames: the message's frames; the itemsize of each view is that of its elements, where they have one in common.
        nbytes: bytes of all tensors.
    """

    header: bytes
    frames: list[Buffer]
    nbytes: int


def pack(tensor_dict: Mapping[str, torch.Tensor | Any]) -> Packed:
    """Header and frames for tensors of any dtype, shape, stride and device, and plain values beside them.

    Neither gradients nor strides are sent; a Parameter arrives as a tensor. Tensors of fewer than `JOIN_BELOW_BYTES` in
    total are copied into one frame; the frames of larger ones are the tensors' own memory where that is contiguous.

    Raises:
        WireError: a name is not a string, a value is neither tensor nor plain, or a tensor cannot be sent as
            bytes (sparse, nested, quantised, meta, a subclass).
    """
    torch = sys.modules.get("torch")
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, value in tensor_dict.items():
        if type(name) is not str:
            raise WireError(f"a name is a {type(name).__name__}, not a string.")
        if torch is not None and isinstance(value, torch.Tensor):
            tensors[name] = _plain_strided(torch, name, value)
        else:
            values[name] = value
    try:
        plan = plan_to_send(tuple([(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]))
    except UnicodeEncodeError as error:
        raise WireError(f"a name cannot be written as UTF-8: {error}.") from error
    header = b"".join((_ARRAY_OF_TWO, plan.schema, encode_values(values) if values else NO_VALUES))
    if plan.joined:
        frames: list[Buffer] = [_by_elements(_join(plan, tensors), plan.itemsize)] if tensors else []
    else:
        frames = [_bytes_of(torch, tensor) for tensor in tensors.values()]
    return Packed(header, frames, plan.nbytes)


def unpack(
    header: bytes,
    frames: Sequence[Buffer],
    *,
    device: str | torch.device | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> dict[str, torch.Tensor | Any]:
    """The dict that was packed: tensors first, in their order, then the plain values.

    The tensors may be written to; those of one joined frame share one allocation, large ones keep their received frame
    alive. Nothing is allocated before the header was checked against the limits and the sizes of the frames.

    Args:
        header: of the message.
        frames: of the message.
        device: where the tensors are placed; by default they stay in host memory.
        limits: what is accepted.

    Raises:
        WireError: header and frames are not what `pack` makes.
    """
    repeats = header.endswith(NO_VALUES) and len(header) <= limits.max_schema_bytes
    plan = _plan_of_tensors_alone(header, limits) if repeats else None
    plan, plain = (plan, {}) if plan else _read(header, limits)
    sizes = tuple([memoryview(frame).nbytes for frame in frames])
    if sizes != plan.frame_bytes:
        raise WireError(f"frames of {_shown(sizes)} bytes came, its tensors need {_shown(plan.frame_bytes)}.")
    torch = sys.modules.get("torch")  # the plan has imported it if there is a tensor
    received: dict[str, Any] = {}
    for place, tensor in zip(plan.places, _tensors(torch, plan, frames), strict=True):
        received[place.name] = tensor if device is None else tensor.to(device)
    for name, value in plain.items():
        if name in received:
            raise WireError(f"{name!r} is both a tensor and a plain value.")
        received[name] = value
    return received


def _read(header: bytes, limits: Limits) -> tuple[Plan, dict[str, Any]]:
    """The plan for the tensors of a header, and its plain values."""
    try:
        schema, values = _header_decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"its tensor header cannot be read: {error}.") from error
    encoded = bytes(schema)
    if len(encoded) > limits.max_schema_bytes:
        raise WireError(f"a schema of {len(encoded)} bytes, at most {limits.max_schema_bytes} are allowed.")
    return plan_to_receive(encoded, limits), decode_values(values)


@lru_cache(PLANS_KEPT)
def _plan_of_tensors_alone(header: bytes, limits: Limits) -> Plan | None:
    """The plan of a header without plain values, which repeats from step to step; None for any other."""
    plan, values = _read(header, limits)
    return None if values else plan


def _plain_strided(torch: Any, name: str, tensor: Any) -> Any:
    """The same bits as a contiguous tensor in host memory; the tensor itself where it is one already."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise WireError(f"tensor {name!r} is a {type(tensor).__name__}.", "Send the plain tensors it is made of.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise WireError(f"tensor {name!r} is sparse, nested, quantised or without data.", "Send it as dense tensors.")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_conj():
        tensor = tensor.resolve_conj()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if not tensor.is_contiguous():
        # As integers of the same width: torch has no copy for some of its dtypes, and this one is exact for all.
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
        tensor = tensor.view(width[tensor.dtype.itemsize]).contiguous().view(tensor.dtype)
    return tensor


def _join(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of all tensors, each at its offset. Reading the address is four times as fast as a torch view."""
    pieces: list[bytes] = []
    end = 0
    for place, tensor in zip(plan.places, tensors.values(), strict=True):
        if place.offset > end:
            pieces.append(bytes(place.offset - end))
        if place.nbytes:
            pieces.append(ctypes.string_at(tensor.data_ptr(), place.nbytes))
        end = place.offset + place.nbytes
    return b"".join(pieces)


def _bytes_of(torch: Any, tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, which the view keeps alive."""
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return _by_elements(view, tensor.dtype.itemsize)


def _by_elements(data: Buffer, itemsize: int) -> memoryview:
    """The same bytes as unsigned integers of that width, which the compression uses."""
    view = memoryview(data)
    return view.cast(_UNSIGNED[itemsize]) if view.nbytes and itemsize > 1 else view


def _tensors(torch: Any, plan: Plan, frames: Sequence[Buffer]) -> list[Any]:
    """The tensors in the frames of a message, as its plan says, in writable memory."""
    if not plan.joined:
        return [_tensor_at(torch, frame, place) for frame, place in zip(frames, plan.places, strict=True)]
    memory = [bytearray(frame) for frame in frames]
    if plan.dtype is None:
        return [_tensor_at(torch, memory[0], place) for place in plan.places]
    flat, itemsize = torch.frombuffer(memory[0], dtype=plan.dtype), plan.itemsize  # a bytearray is aligned
    return [flat.as_strided(place.shape, place.strides, place.offset // itemsize) for place in plan.places]


def _tensor_at(torch: Any, memory: Buffer, place: Place) -> Any:
    if not place.elements:
        return torch.empty(place.shape, dtype=place.dtype)
    if memoryview(memory).readonly:
        memory = bytearray(memory)
    flat = torch.frombuffer(memory, dtype=place.dtype, count=place.elements, offset=place.offset)
    if flat.data_ptr() % min(place.dtype.itemsize, 8):  # ZeroMQ does not align frames
        flat = flat.clone()
    return flat.as_strided(place.shape, place.strides)


def _shown(sizes: Sequence[int]) -> str:
    """The first numbers of a list that may be long."""
    return ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "") or "no"
