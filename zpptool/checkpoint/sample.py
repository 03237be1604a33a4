# SPDX-License-Identifier: Apache-2.0
"""A few bytes that tell two models of one architecture apart, without reading either of them.

The digest is a function of the model's content, not of its layout, and is the same wherever and whenever it is taken:
from the full checkpoint, for one stage only, from a hub. Different digests prove different models; equal ones prove
nothing, which is what the digests of all bytes are for.
"""

from __future__ import annotations

from collections.abc import Callable

from zpptool.checkpoint.digest import source_digest_of
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex

SAMPLED_TENSORS = 32
SAMPLED_BYTES = 64


def sample_digest(index: CheckpointIndex, read: Callable[[list[TensorInfo]], list[bytes]]) -> str:
    """The digest of up to 64 bytes from the middle of up to 32 tensors, spread over the sorted names.

    Args:
        index: of a full checkpoint.
        read: the bytes of tensors whose places and lengths have been narrowed to the samples.
    """
    names = sorted(name for name, tensor in index.tensors.items() if tensor.nbytes)
    count = min(SAMPLED_TENSORS, len(names))
    chosen = [index.tensors[names[place * len(names) // count]] for place in range(count)]
    contents = read([_middle(tensor) for tensor in chosen])
    return source_digest_of({tensor.name: own.hex() for tensor, own in zip(chosen, contents, strict=True)})


def read_samples(samples: list[TensorInfo]) -> list[bytes]:
    """The bytes at these places of files on this machine; raises OSError."""
    return [_read(sample) for sample in samples]


def _read(sample: TensorInfo) -> bytes:
    with sample.file.open("rb", buffering=0) as stream:
        stream.seek(sample.offset)
        return stream.read(sample.nbytes)


def _middle(tensor: TensorInfo) -> TensorInfo:
    length = min(tensor.nbytes, SAMPLED_BYTES)
    return tensor._replace(offset=tensor.offset + (tensor.nbytes - length) // 2, nbytes=length)
