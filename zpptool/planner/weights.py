# SPDX-License-Identifier: Apache-2.0
"""The bytes of the weights of every possible stage, and between which layers a model may be cut.

Both come from the headers of the checkpoint, by the rules by which `zpptool split` divides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from zpptool.checkpoint.index import CheckpointIndex, TensorInfo
from zpptool.checkpoint.roles import Side
from zpptool.checkpoint.structure import Structure
from zpptool.partition import LayerRange

_STORED = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class StageWeights:
    """The weights of a model, by stage.

    Attributes:
        bytes: `bytes[a][b]` of the stage that owns the layers `[a, b)`; 0 for no layers.
        layer_bytes: of each layer by itself.
        embedding, head: of what the first and the last stage hold beside their layers.
        cuts: the layers before which the model may be cut, the first layer and the end included.
        joined: why it may not be cut before other layers, by layer.
    """

    bytes: Sequence[Sequence[int]]
    layer_bytes: tuple[int, ...]
    embedding: int
    head: int
    cuts: frozenset[int]
    joined: dict[int, str]

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layer_bytes)


def stage_weights(index: CheckpointIndex, structure: Structure, itemsize: int | None = None) -> StageWeights:
    """Compute the weights of every range of layers.

    Args:
        index, structure: of the checkpoint.
        itemsize: bytes of a floating-point number once it is loaded; None to keep the checkpoint's own.
    """
    count = structure.num_layers
    layers = [0] * count
    first = last = ends = every = 0
    shared: list[tuple[tuple[int, ...], int]] = []
    several: list[tuple[str, int]] = []  # tensors with second names
    for name, tensor in index.tensors.items():
        size = loaded_bytes(tensor, itemsize)
        if name in structure.aliases:
            several.append((name, size))
            continue
        match structure.roles[name].side:
            case Side.INPUT:
                first += size
            case Side.OUTPUT | Side.EXTRA:
                last += size
            case Side.ENDS:
                ends += size
            case Side.EVERY | Side.PLACED:
                every += size
            case Side.LAYER | Side.SHARED:
                owners = structure.readers.get(name, structure.decoder.layers_of(name))
                if len(owners) == 1:
                    layers[owners[0]] += size
                else:
                    shared.append((owners, size))
    sums = [0, *accumulate(layers)]
    table = [[0] * (count + 1) for _ in range(count + 1)]
    for start in range(count):
        starting = [0] * (count + 1)  # what shared tensors add, by the first layer that reads them from here on
        for owners, size in shared:
            if (reader := next((layer for layer in owners if layer >= start), None)) is not None:
                starting[reader + 1] += size
        more = list(accumulate(starting))
        for end in range(start + 1, count + 1):
            outer = (first if start == 0 else 0) + (last if end == count else 0) + every
            outer += ends if start == 0 or end == count else 0
            other = sum(size for name, size in several if _holds(structure, name, start, end))
            table[start][end] = sums[end] - sums[start] + more[end] + outer + other
    cuts = frozenset(layer for layer in range(count + 1) if layer not in structure.joined)
    return StageWeights(table, tuple(layers), first + ends + every, last + ends, cuts, dict(structure.joined))


def loaded_bytes(tensor: TensorInfo, itemsize: int | None) -> int:
    """The bytes of a tensor once it is loaded: a floating-point one may be loaded in another dtype."""
    stored = _STORED.get(tensor.dtype)
    return tensor.nbytes * itemsize // stored if itemsize and stored else tensor.nbytes


def _holds(structure: Structure, name: str, start: int, end: int) -> bool:
    """Whether the stage that owns the layers `[start, end)` holds a tensor."""
    bounds = sorted({0, start, end, structure.num_layers})
    partition = tuple(LayerRange(*pair) for pair in pairwise(bounds))
    return bounds.index(start) in structure.stages_of(name, partition)
