# SPDX-License-Identifier: Apache-2.0
"""Read the second names of shared tensors from the metadata of safetensors files.

`safetensors.torch.save_model` stores a tensor that has several names once, and writes each other name into
`__metadata__`, with the name under which the tensor is stored as its value. Every place that a second name belongs to
needs the tensor as well.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from zpptool.checkpoint.header import TensorInfo


def tensor_aliases(metadata: Iterable[Mapping[str, str]], tensors: Container[str]) -> dict[str, str]:
    """Return the stored name of each second name that no tensor has.

    Args:
        metadata: the `__metadata__` of every weight file.
        tensors: the names of the stored tensors.
    """
    return {
        alias: stored
        for of_one in metadata
        for alias, stored in of_one.items()
        if stored in tensors and alias not in tensors
    }


def under_all_names(tensors: Iterable[TensorInfo], aliases: Mapping[str, str]) -> list[TensorInfo]:
    """Return the tensors, each followed by itself under its second names, so that an engine finds all of them."""
    others: dict[str, list[str]] = {}
    for alias, stored in aliases.items():
        others.setdefault(stored, []).append(alias)
    return [
        named
        for tensor in tensors
        for named in (tensor, *(tensor._replace(name=alias) for alias in others.get(tensor.name, ())))
    ]
