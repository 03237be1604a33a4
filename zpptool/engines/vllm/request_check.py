# SPDX-License-Identifier: Apache-2.0
"""Whether the images, videos and sounds of a request can travel to the stages. What cannot is the client's error, and
not the end of an engine core that finds out when it sends a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from zpptool.console import human_bytes
from zpptool.engines.vllm import codec
from zpptool.errors import ZppError

MOST_BYTES = 512 << 20
"""The most bytes that the items of one request have after the model's processor. A frame of the wire has at most twice
as many, and a step may hold several requests."""


def check_request(request: Any) -> None:
    """Check the items of vLLM's `EngineCoreRequest`. Those that the engine core has from an earlier request are not
    here, and were checked then.

    Raises:
        ZppError: an item has a part that is not carried, which is named, or the items are too large together.
    """
    features = request.mm_features or ()
    size = sum(_nbytes(feature.data) for feature in features)
    if size > MOST_BYTES:
        raise ZppError(
            f"the images, videos and sounds of one request take {human_bytes(size)} after the model's processor, and"
            f" {human_bytes(MOST_BYTES)} are carried between stages; send smaller ones, or fewer"
        )
    for feature in features:
        codec.decode(codec.encode(_without_bytes(feature)))


def _nbytes(item: Any) -> int:
    elements = item.values() if item is not None else ()
    return sum(tensor.nbytes for element in elements for tensor in _tensors(element.data))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            yield from _tensors(part)


def _without_bytes(feature: Any) -> Any:
    """The same feature, with tensors that have no elements."""
    if feature.data is None:
        return feature
    emptied = type(feature.data)(
        {name: dataclasses.replace(element, data=_emptied(element.data)) for name, element in feature.data.items()}
    )
    return dataclasses.replace(feature, data=emptied)


def _emptied(value: Any) -> Any:
    if type(value) is torch.Tensor:
        return value.new_empty(0)
    return type(value)(map(_emptied, value)) if type(value) in (list, tuple) else value
