# SPDX-License-Identifier: Apache-2.0
"""Read the header of one safetensors file without reading its tensors, and write a header for a subset of them.

A `Header` returned by this module is consistent with its file: every tensor has the byte count that its dtype and shape
require, and the tensors are contiguous, without gap or overlap, from the end of the header to the end of the file. Its
size is checked against limits before it is parsed. The rules are those of safetensors 0.8
(`SafeTensors::read_metadata`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import msgspec

from zpptool.errors import ExitCode, ZppError
from zpptool.regular_file import open_regular

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 64
MAX_TENSORS = 1_000_000
BLOCK_BYTES = 4096
"""File system block size in bytes: the unit, and the alignment, in which files can share data."""
LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits per element, for every dtype of safetensors 0.8."""


class HeaderFault(ZppError):
    """A safetensors file is malformed (INVALID); `tensor` names the tensor at fault, or is None."""

    def __init__(self, message: str, hint: str | None = None, tensor: str | None = None) -> None:
        super().__init__(message, hint, ExitCode.INVALID)
        self.tensor = tensor


class TensorInfo(NamedTuple):
    """One tensor and the location of its bytes.

    Attributes:
        name: the name in the checkpoint.
        dtype: the safetensors dtype, for example `BF16`.
        shape: in elements; empty for a scalar.
        file: the safetensors file.
        offset: of the first byte, in bytes from the start of the file.
        nbytes: size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The parsed header of one safetensors file.

    Attributes:
        file: the file.
        file_bytes: size of the file in bytes.
        header_bytes: size of length field and JSON in bytes: the offset of the tensor data.
        metadata: the free-form `__metadata__`, for example `{"format": "pt"}`.
        tensors: the tensors, in the order of their bytes.
    """

    file: Path
    file_bytes: int
    header_bytes: int
    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]


def read_header(file: Path) -> Header:
    """Read and check the header of `file`.

    Raises:
        HeaderFault: (INVALID) the file cannot be read, is truncated, or its header is wrong.
    """
    try:
        if not file.is_file():
            raise HeaderFault(f"{file} is not a file" if file.exists() else f"{file} is missing")
        with open_regular(file) as stream:
            if hasattr(os, "posix_fadvise"):  # no readahead: the tensors may not be needed
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file_bytes = os.fstat(stream.fileno()).st_size
            json_bytes = json_length(file, stream.read(LENGTH_BYTES), file_bytes)
            raw = stream.read(json_bytes)
    except OSError as cause:
        raise HeaderFault(f"{file} cannot be read: {cause.strerror}") from cause
    return parse_header(file, raw, file_bytes)


def parse_header(file: Path, raw: bytes, file_bytes: int) -> Header:
    """Parse the header JSON `raw` of a file of `file_bytes` bytes; raises HeaderFault."""
    metadata, tensors = _parse_fast(file, raw) or _parse_with_diagnosis(file, raw)
    tensors.sort(key=_position)
    reached = data_start = LENGTH_BYTES + len(raw)
    for tensor in tensors:
        if tensor.offset != reached:
            fault = "overlaps the tensor before it" if tensor.offset < reached else "leaves a gap before it"
            raise _invalid(file, f"tensor {tensor.name} {fault}", tensor.name)
        reached += tensor.nbytes
    if reached != file_bytes:
        cut = next((tensor.name for tensor in tensors if tensor.offset + tensor.nbytes > file_bytes), None)
        relation = f"truncated, first in tensor {cut}" if cut else "longer than its header states"
        raise HeaderFault(
            f"{file} is {relation}: its header describes {reached} bytes and the file has {file_bytes}",
            "download or copy the file again",
            cut,
        )
    return Header(file, file_bytes, data_start, metadata, tuple(tensors))


def write_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str], phase: int | None = None) -> bytes:
    """Return the header bytes (length field and JSON) of a safetensors file with `tensors` in the given order.

    The JSON is padded with spaces so that tensor data starts at a multiple of eight bytes, as safetensors itself does.

    Args:
        tensors: the tensors; the file holds their bytes contiguously.
        metadata: the free-form `__metadata__`; left out if empty.
        phase: if given, a multiple of eight: tensor data starts that many bytes past a multiple of `BLOCK_BYTES`.
    """
    entries: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    reached = 0
    for tensor in tensors:
        offsets = [reached, reached + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        reached += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    data_start = LENGTH_BYTES + len(raw)
    raw += b" " * (-data_start % 8 if phase is None else (phase - data_start) % BLOCK_BYTES)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def json_length(file: Path, start: bytes, file_bytes: int) -> int:
    """Return the length of the header JSON in bytes.

    Args:
        file: the file, for messages.
        start: its first `LENGTH_BYTES` bytes, or fewer if it is shorter.
        file_bytes: its size in bytes.

    Raises:
        HeaderFault: (INVALID) the file is a Git LFS pointer, is truncated, or the length is over the limit.
    """
    if start == b"version ":
        raise HeaderFault(f"{file} is a Git LFS pointer, not the weights", "run `git lfs pull` in the checkpoint")
    if len(start) < LENGTH_BYTES:
        raise HeaderFault(f"{file} is truncated: it has {file_bytes} bytes", "download or copy the file again")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise _invalid(file, f"it claims to be {length} bytes long, more than the {MAX_HEADER_BYTES} that are allowed")
    if length > file_bytes - LENGTH_BYTES:
        raise HeaderFault(
            f"{file} is truncated: its header alone is {length} bytes and the file has {file_bytes}",
            "download or copy the file again",
        )
    return length


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry = msgspec.json.Decoder(_Entry)


def _parse_fast(file: Path, raw: bytes) -> tuple[dict[str, str], list[TensorInfo]] | None:
    """Return the metadata and tensors of a valid header, or None: `_parse_with_diagnosis` then finds the fault, if any.

    The typed decoder drops a name that occurs twice. Where the JSON has no escapes, every key appears literally, so an
    equal number of entries and of keys `"dtype"` proves that no entry was dropped.
    """
    try:
        entries = _entries.decode(raw)
        raw_metadata = bytes(entries.pop(METADATA_KEY, b"{}"))
        metadata = _metadata(file, json.loads(raw_metadata, object_pairs_hook=_no_duplicates))
        data_start = LENGTH_BYTES + len(raw)
        tensors = []
        for name, content in entries.items():
            entry = _entry.decode(content)
            begin, end = entry.data_offsets
            if DTYPE_BITS[entry.dtype] * math.prod(entry.shape) != 8 * (end - begin) or begin < 0:
                return None
            if entry.shape and (min(entry.shape) < 0 or max(entry.shape) >> 63 or len(entry.shape) > MAX_RANK):
                return None
            tensors.append(TensorInfo(name, entry.dtype, entry.shape, file, data_start + begin, end - begin))
    except (ValueError, KeyError, RecursionError):
        return None
    keys = (b'"dtype"', b'"shape"', b'"data_offsets"', METADATA_KEY.encode())
    counts = [raw.count(key) for key in keys]
    if b"\\" in raw or counts[:3] != [len(tensors)] * 3 or counts[3] > 1 or len(tensors) > MAX_TENSORS:
        return None
    return metadata, tensors


def _parse_with_diagnosis(file: Path, raw: bytes) -> tuple[dict[str, str], list[TensorInfo]]:
    entries = _parse_json(file, raw)
    metadata = _metadata(file, entries.pop(METADATA_KEY, {}))
    if len(entries) > MAX_TENSORS:
        raise _invalid(file, f"it names {len(entries)} tensors, more than the {MAX_TENSORS} that are allowed")
    data_start = LENGTH_BYTES + len(raw)
    return metadata, [_tensor(file, name, entry, data_start) for name, entry in entries.items()]


def _position(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes


def _parse_json(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw, object_pairs_hook=_no_duplicates)
        if b"\\u" in raw:
            json.dumps(entries, ensure_ascii=False).encode()  # an unpaired surrogate cannot be encoded
    except _Twice as cause:
        raise _invalid(file, f"the name {cause} occurs twice", str(cause)) from cause
    except (ValueError, RecursionError) as cause:
        raise _invalid(file, f"it cannot be parsed as JSON ({cause})") from cause
    if not isinstance(entries, dict):
        raise _invalid(file, "it is not a JSON object")
    return entries


class _Twice(ValueError):
    """A JSON object has the same key twice."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _value in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Twice(twice)
    return mapping


def _metadata(file: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(file, f"{METADATA_KEY} does not map strings to strings")
    return metadata


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _invalid(file, f"the entry of tensor {name} is not an object", name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None or not isinstance(dtype, str):
        raise _invalid(file, f"tensor {name} has the dtype {dtype}, which is not a safetensors dtype", name)
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise _invalid(file, f"tensor {name} has no usable shape", name)
    if not _naturals(offsets) or len(offsets) != 2:
        raise _invalid(file, f"tensor {name} has no usable data_offsets", name)
    begin, end = offsets
    required_bits = bits * math.prod(shape)
    if required_bits != 8 * (end - begin):
        raise _invalid(
            file, f"tensor {name} ({dtype} {shape}) does not fit the {end - begin} bytes of its data_offsets", name
        )
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin, end - begin)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _invalid(file: Path, fault: str, tensor: str | None = None) -> HeaderFault:
    return HeaderFault(
        f"the safetensors header of {file} is invalid: {fault}", "download or copy the file again", tensor
    )
