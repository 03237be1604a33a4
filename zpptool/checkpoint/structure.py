# SPDX-License-Identifier: Apache-2.0
"""Infer the role of each tensor in the pipeline from names, shapes and config, without a table of model types.

Every tensor of the index has a role: input, one decoder layer, several layers, output, both ends, or every stage. The
layers are found first (see `decoder`), then what they share (see `sharing`); all other tensors are classified by the
words in their names (see `roles`). An ambiguous checkpoint is refused, with the name of the tensor in question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zpptool.checkpoint.decoder import Decoder, find_decoder
from zpptool.checkpoint.index import CheckpointIndex, TensorInfo
from zpptool.checkpoint.model_config import takes_more_than_text, text_config
from zpptool.checkpoint.roles import LAYER, PREDICTION, TEXT_WORDS, Role, Side, outside_role, words_of
from zpptool.checkpoint.sharing import joined_layers, shared_weights
from zpptool.checkpoint.tied import tie_ends
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import Partition

_DROPPED = "predicts tokens past the next one: left out as requested"


@dataclass(frozen=True)
class Structure:
    """The roles of a model's tensors.

    Attributes:
        decoder: the decoder layers.
        roles: the role of every tensor, in the order of the index.
        readers: the layers that read each tensor shared by several.
        joined: layers that must be in the stage of the preceding layer, with the reason.
        notes: choices made for the checkpoint, for the user to read.
    """

    decoder: Decoder
    roles: Mapping[str, Role]
    readers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    joined: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def layer_prefix(self) -> str:
        """The part of a tensor name before the layer number, for example `model.layers`."""
        return self.decoder.prefix

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return self.decoder.num_layers

    def stages_of(self, name: str, partition: Partition) -> tuple[int, ...]:
        """Return the stages that need the tensor."""
        last = len(partition) - 1
        match self.roles[name].side:
            case Side.INPUT:
                return (0,)
            case Side.OUTPUT | Side.EXTRA:
                return (last,)
            case Side.ENDS:
                return tuple(sorted({0, last}))
            case Side.EVERY:
                return tuple(range(last + 1))
            case Side.LAYER:
                return _owners((self.decoder.layer_of[name],), partition)
            case Side.SHARED:
                return _owners(self.readers[name], partition)


@dataclass(frozen=True)
class Assignment:
    """Which stage holds which tensors.

    Attributes:
        partition: the layer ranges of all stages.
        stages: for each stage the names of its tensors, in the order of the index.
        shared: tensors held by several stages: name to reason.
        dropped: tensors held by no stage: name to reason.
    """

    partition: Partition
    stages: tuple[tuple[str, ...], ...]
    shared: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)


def infer_structure(index: CheckpointIndex) -> Structure:
    """Infer the role of every tensor.

    Raises:
        ZppError: (INVALID) the layer count is unknown, the layers are ambiguous, or a large tensor outside them cannot
            be classified.
    """
    if any(part.get("is_encoder_decoder") for part in (index.config, text_config(index.config))):
        raise invalid_error(
            f"{index.directory} is an encoder-decoder model, which has no single stack of layers to split",
            "choose a decoder-only model",
        )
    decoder = find_decoder(index)
    readers = shared_weights(decoder)
    composite = takes_more_than_text(index.config)
    roles: dict[str, Role] = {}
    for name, tensor in index.tensors.items():
        if name in readers:
            roles[name] = Role(Side.SHARED, f"layers {', '.join(map(str, readers[name]))} share it")
        elif name in decoder.layer_of:
            roles[name] = LAYER
        elif name in decoder.predicting:
            roles[name] = PREDICTION
        else:
            role = _outside_role(tensor, decoder.prefix, composite)
            if role is None:
                raise _unclear_tensor(index, tensor, decoder.prefix)
            roles[name] = role
    roles, notes = tie_ends(roles, index.tensors, index.config)
    return Structure(decoder, roles, readers, joined_layers(decoder, index.config), (*decoder.notes, *notes))


def assign(structure: Structure, partition: Partition, *, drop_prediction: bool = False) -> Assignment:
    """Assign every tensor to the stages that need it.

    Args:
        structure: the structure of the model.
        partition: the layer ranges of all stages.
        drop_prediction: leave out tensors that predict tokens past the next one.

    Raises:
        ZppError: (INVALID) the partition does not fit the model, or separates layers that share a cache.
    """
    if partition[-1].end != structure.num_layers:
        raise invalid_error(f"the layer ranges end at {partition[-1].end}, the model has {structure.num_layers} layers")
    for owned in partition:
        if owned.start in structure.joined:
            raise _separated_layers(structure, owned.start)
    stages: list[list[str]] = [[] for _ in partition]
    shared: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name, role in structure.roles.items():
        if role == PREDICTION and drop_prediction:
            dropped[name] = _DROPPED
            continue
        owners = structure.stages_of(name, partition)
        if not owners:
            raise invalid_error(f"tensor {name} belongs to no stage: the layer ranges leave its layer out")
        for stage in owners:
            stages[stage].append(name)
        if len(owners) > 1:
            shared[name] = role.reason
    return Assignment(partition, tuple(tuple(names) for names in stages), shared, dropped)


def stage_tensors(index: CheckpointIndex, partition: Partition, stage: int) -> list[TensorInfo]:
    """Return the tensors of a full checkpoint that `stage` needs, in index order.

    Raises:
        ZppError: (INVALID) as `infer_structure` and `assign`.
    """
    names = assign(infer_structure(index), partition).stages[stage]
    return [index.tensors[name] for name in names]


def _owners(layers: tuple[int, ...], partition: Partition) -> tuple[int, ...]:
    return tuple(
        stage for stage, owned in enumerate(partition) if any(owned.start <= layer < owned.end for layer in layers)
    )


def _outside_role(tensor: TensorInfo, prefix: str, composite: bool) -> Role | None:
    """Return the role of a tensor outside the layers, or None. A tensor below the text model's path is part of that."""
    path, parts = prefix.split(".")[:-1], tensor.name.split(".")
    common = 0
    while common < min(len(path), len(parts) - 1) and path[common] == parts[common]:
        common += 1
    text_depth = next((depth for depth, part in enumerate(path, 1) if words_of(part) & TEXT_WORDS), len(path))
    return outside_role(".".join(parts[common:]), tensor.nbytes, beside_decoder=composite and common < text_depth)


def _unclear_tensor(index: CheckpointIndex, tensor: TensorInfo, prefix: str) -> ZppError:
    return invalid_error(
        f"{index.directory}: it is not clear which stage needs tensor {tensor.name} ({tensor.dtype} "
        f"{list(tensor.shape)}), which is outside the decoder layers {prefix}",
        "this checkpoint's structure is not clear enough to split",
    )


def _separated_layers(structure: Structure, layer: int) -> ZppError:
    first = next(start for start in range(layer, -1, -1) if start not in structure.joined)
    after = next((end for end in range(layer, structure.num_layers) if end not in structure.joined), None)
    last = structure.num_layers if after is None else after
    return invalid_error(
        f"the model cannot be split before layer {layer}: {structure.joined[layer]}",
        f"give --ranges that keep layers {first}-{last} in one stage",
    )
