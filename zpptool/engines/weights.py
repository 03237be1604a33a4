# SPDX-License-Identifier: Apache-2.0
"""Reads tensors of safetensors files as torch tensors: exactly their bytes, each into memory of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import groupby

import torch

from zpptool.checkpoint.index import TensorInfo
from zpptool.errors import invalid_error

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F4": torch.float4_e2m1fn_x2,
}  # fmt: skip
"""safetensors' names of the dtypes (safetensors 0.8, `safetensors/torch.py`)."""
AHEAD_BYTES = 16 << 20
"""The number of bytes of the next tensors that the kernel is asked to read ahead while one is read."""


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Read one tensor.

    Returns:
        a CPU tensor of `info.shape` and `info.dtype`; its memory is not shared and may be written.

    Raises:
        ZppError: (INVALID) a dtype that torch does not have, or a file that ends before the tensor does.
    """
    dtype = _dtype(info)
    with open(info.file, "rb", buffering=0) as file:
        return _read(file, info, dtype)


def read_tensors(infos: Sequence[TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read tensors one after the other.

    Only these bytes are read from the disk. By default the kernel reads ahead past the end of a tensor, which in a
    checkpoint of many layers was a fifth more than a stage owns; here the kernel is asked for the next tensors instead.

    Args:
        infos: in the order in which they are read, which should be that of files and of offsets in them.

    Yields:
        name and tensor; see `read_tensor`.

    Raises:
        ZppError: as `read_tensor`.
    """
    for path, group in groupby(infos, key=lambda info: info.file):
        own = list(group)
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            announced = due = 0
            for number, info in enumerate(own):
                while announced < len(own) and (announced <= number or due < AHEAD_BYTES):
                    coming = own[announced]
                    os.posix_fadvise(file.fileno(), coming.offset, coming.nbytes, os.POSIX_FADV_WILLNEED)
                    announced, due = announced + 1, due + coming.nbytes
                yield info.name, _read(file, info, _dtype(info))
                due -= info.nbytes


def _dtype(info: TensorInfo) -> torch.dtype:
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise invalid_error(f"tensor {info.name} in {info.file} has dtype {info.dtype}, which torch does not have")
    return dtype


def _read(file: FileIO, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    content = torch.empty(info.nbytes, dtype=torch.uint8)
    file.seek(info.offset)
    view, done = memoryview(content.numpy()), 0
    while done < info.nbytes:
        got = file.readinto(view[done:])
        if not got:
            raise invalid_error(f"{info.file} ends in the middle of tensor {info.name}", "Fetch the file again.")
        done += got
    typed = content.view(dtype)
    return typed.reshape(info.shape) if dtype is not torch.float4_e2m1fn_x2 else typed.reshape(*info.shape[:-1], -1)
