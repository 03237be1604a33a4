# SPDX-License-Identifier: Apache-2.0
"""A digest of a few bytes that distinguishes two models of one architecture without reading all of them.

The digest depends on the model's content, not on its layout, and is the same however it is computed: from the full
checkpoint, for one stage only, or from the Hub. Different digests prove that the models differ. Equal digests prove
nothing; for that there are the digests of all bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from zpptool.checkpoint.digest import source_digest_of
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex

SAMPLED_TENSORS = 32
SAMPLED_BYTES = 64


def sample_digest(index: CheckpointIndex, read: Callable[[list[TensorInfo]], list[bytes]]) -> str:
    """Return the digest of up to 64 bytes from the middle of up to 32 tensors, spread over the sorted names.

    Args:
        index: the index of a full checkpoint.
        read: returns the bytes of the given tensors, whose offsets and sizes have been narrowed to the samples.
    """
    names = sorted(name for name, tensor in index.tensors.items() if tensor.nbytes)
    count = min(SAMPLED_TENSORS, len(names))
    chosen = [index.tensors[names[place * len(names) // count]] for place in range(count)]
    contents = read([_middle(tensor) for tensor in chosen])
    return source_digest_of({tensor.name: content.hex() for tensor, content in zip(chosen, contents, strict=True)})


def read_samples(samples: list[TensorInfo]) -> list[bytes]:
    """Read samples from local files; raises OSError."""
    return [_read(sample) for sample in samples]


def _read(sample: TensorInfo) -> bytes:
    with sample.file.open("rb", buffering=0) as stream:
        stream.seek(sample.offset)
        return stream.read(sample.nbytes)


def _middle(tensor: TensorInfo) -> TensorInfo:
    length = min(tensor.nbytes, SAMPLED_BYTES)
    return tensor._replace(offset=tensor.offset + (tensor.nbytes - length) // 2, nbytes=length)
