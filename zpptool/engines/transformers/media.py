# SPDX-License-Identifier: Apache-2.0
"""What a model's processor makes of the images of a prompt, as bytes of a call to the stages and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from zpptool.engines.transformers.tensor_tree import from_entries, to_entries
from zpptool.wire.message import tensors

Media = Mapping[str, Any]
"""Tensors, and lists of them, by parameter of the model: pixels, grids of patches, kinds of tokens."""
MOST_BYTES = 512 << 20
"""The most bytes of one prompt's tensors, as on vLLM."""
_NAME = "media"


def media_bytes(media: Media) -> int:
    """The number of bytes of all tensors."""
    return sum(tensor.nbytes for tensor in _tensors_in(media))


def encode_media(media: Media | None) -> list[bytes]:
    """The media as pieces of bytes; none for a prompt without media.

    Raises:
        ZppError: (INVALID) a value cannot be sent.
    """
    if not media:
        return []
    packed = tensors.pack(to_entries(_NAME, media))
    return [packed.header, *(bytes(frame) for frame in packed.frames)]


def decode_media(pieces: Sequence[bytes]) -> Media | None:
    """The media in pieces of bytes; None where there are none.

    Raises:
        WireError: they are not what `encode_media` makes.
    """
    return from_entries(_NAME, tensors.unpack(pieces[0], pieces[1:])) if pieces else None


def on_device(media: Media, device: Any, dtype: Any) -> dict[str, Any]:
    """The media on a device, with pixels in the model's dtype."""
    return {name: _placed(value, device, dtype) for name, value in media.items()}


def _placed(value: Any, device: Any, dtype: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_placed(entry, device, dtype) for entry in value)
    return value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for entry in value.values() for tensor in _tensors_in(entry))
    elif isinstance(value, list | tuple):
        yield from (tensor for entry in value for tensor in _tensors_in(entry))
