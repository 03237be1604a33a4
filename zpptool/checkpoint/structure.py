# SPDX-License-Identifier: Apache-2.0
"""Infer the role of each tensor in the pipeline from names, shapes and config, without a table of model types.

Every tensor of the index has a role: input, one decoder layer, several layers, output, both ends, or every stage. The
layers are found first (see `decoder`), then what they share (see `sharing`); all other tensors are classified by the
words in their names (see `roles`). An ambiguous checkpoint is refused, with the name of the tensor in question, unless
the user has placed it (see `placement`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from zpptool.checkpoint.aliases import under_all_names
from zpptool.checkpoint.completeness import check_layers
from zpptool.checkpoint.decoder import Decoder, find_decoder
from zpptool.checkpoint.index import CheckpointIndex, TensorInfo
from zpptool.checkpoint.model_config import takes_more_than_text, text_config
from zpptool.checkpoint.placement import Placement, placed_tensors
from zpptool.checkpoint.projections import Evidence, projection_evidence
from zpptool.checkpoint.roles import (
    BRIDGE_WORDS,
    LAYER,
    PREDICTION,
    TEXT_WORDS,
    TOWER_WORDS,
    Role,
    Side,
    outside_role,
    words_of,
)
from zpptool.checkpoint.shared_state import Reading, joined_layers, state_readings
from zpptool.checkpoint.sharing import shared_weights
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
        readings: the layers that read the state of an earlier one.
        aliases: the roles of the second names of each tensor that has any.
        placed: the placement of each tensor that the user has placed.
        notes: choices made for the checkpoint, for the user to read.
    """

    decoder: Decoder
    roles: Mapping[str, Role]
    readers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    aliases: Mapping[str, Mapping[str, Role]] = field(default_factory=dict)
    placed: Mapping[str, Placement] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def layer_prefix(self) -> str:
        """The part of a tensor name before the layer number, for example `model.layers`."""
        return self.decoder.prefix

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return self.decoder.num_layers

    @cached_property
    def joined(self) -> dict[int, str]:
        """The layers that must be in the stage of the preceding layer, with the reason."""
        return joined_layers(self.readings)

    def stages_of(self, name: str, partition: Partition) -> tuple[int, ...]:
        """Return the stages that need the tensor.

        Raises:
            ZppError: (USAGE) the user has placed it in a stage that does not exist.
        """
        if name not in self.placed:
            stages = set(self._inferred_stages(name, self.roles[name], partition))
            for alias, role in self.aliases.get(name, {}).items():
                stages.update(self._inferred_stages(alias, role, partition))
            return tuple(sorted(stages))
        layers = self.readers.get(name, self.decoder.layers_of(name))
        return tuple(sorted({*self.placed[name].stages(len(partition)), *_owners(layers, partition)}))

    def _inferred_stages(self, name: str, role: Role, partition: Partition) -> tuple[int, ...]:
        last = len(partition) - 1
        match role.side:
            case Side.INPUT:
                return (0,)
            case Side.OUTPUT | Side.EXTRA:
                return (last,)
            case Side.ENDS:
                return tuple(sorted({0, last}))
            case Side.EVERY | Side.PLACED:
                return tuple(range(last + 1))
            case Side.LAYER:
                return _owners(self.decoder.layers_of(name), partition)
            case Side.SHARED:
                return _owners(self.readers.get(name, self.decoder.layers_of(name)), partition)


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


def infer_structure(index: CheckpointIndex, placements: Sequence[Placement] = ()) -> Structure:
    """Infer the role of every tensor.

    Args:
        index: of the checkpoint.
        placements: where the user places some tensors.

    Raises:
        ZppError: (INVALID) the layer count is unknown, the layers are ambiguous or incomplete, a large tensor outside
            them cannot be classified, there is no embedding, or a placement matches no tensor.
    """
    if any(part.get("is_encoder_decoder") for part in (index.config, text_config(index.config))):
        raise invalid_error(
            f"{index.directory} is an encoder-decoder model, which has no single stack of layers to split",
            "choose a decoder-only model",
        )
    placed = placed_tensors(placements, index.tensors)
    stored, index = index, _under_all_names(index)
    decoder = find_decoder(index)
    check_layers(decoder, index)
    readers = shared_weights(decoder)
    outside = _OutsideTensors(index, decoder)
    roles: dict[str, Role] = {}
    for name, tensor in index.tensors.items():
        if name in readers:
            roles[name] = Role(Side.SHARED, f"layers {', '.join(map(str, readers[name]))} share it")
        elif name in decoder.layer_of:
            roles[name] = LAYER
        elif name in decoder.predicting:
            roles[name] = PREDICTION
        else:
            roles[name] = outside.role(tensor, placed.get(name))
    roles, notes = tie_ends(roles, index.tensors, index.config)
    roles |= {name: _placed_role(placement) for name, placement in placed.items()}
    readings = state_readings(decoder, index.tensors, index.config)
    aliases: dict[str, dict[str, Role]] = {}
    for alias, name in stored.aliases.items():
        aliases.setdefault(name, {})[alias] = roles.pop(alias)
        if name not in placed:
            roles[name] = _joint_role(roles[name], aliases[name])
    return Structure(decoder, roles, readers, readings, aliases, placed, (*decoder.notes, *notes))


def assign(structure: Structure, partition: Partition, *, drop_prediction: bool = False) -> Assignment:
    """Assign every tensor to the stages that need it.

    Args:
        structure: the structure of the model.
        partition: the layer ranges of all stages.
        drop_prediction: leave out tensors that predict tokens past the next one.

    Raises:
        ZppError: (INVALID) the partition does not fit the model, separates layers that share state, or leaves a stage
            without any tensor.
    """
    if partition[-1].end != structure.num_layers:
        raise invalid_error(f"the layer ranges end at {partition[-1].end}, the model has {structure.num_layers} layers")
    allowed = _with_the_state(structure, partition)
    joined = joined_layers(reading for reading in structure.readings if reading not in allowed)
    for owned in partition:
        if owned.start in joined:
            raise _separated_layers(joined, owned.start, structure.num_layers)
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
    if bare := [str(stage) for stage, names in enumerate(stages) if not names]:
        raise invalid_error(
            f"stage {bare[0]} would hold no tensor: its layers {partition[int(bare[0])]} compute nothing",
            "Give --ranges in which each stage has a layer with tensors.",
        )
    return Assignment(partition, tuple(tuple(names) for names in stages), shared, dropped)


def stage_tensors(index: CheckpointIndex, partition: Partition, stage: int) -> list[TensorInfo]:
    """Return the tensors of a full checkpoint that `stage` needs, in index order.

    Raises:
        ZppError: (INVALID) as `infer_structure` and `assign`.
    """
    names = assign(infer_structure(index), partition).stages[stage]
    return [index.tensors[name] for name in names]


def _owners(layers: Iterable[int], partition: Partition) -> tuple[int, ...]:
    """Return the stages that own any of these layers."""
    found = {(bisect_right(partition, layer, key=lambda owned: owned.start) - 1, layer) for layer in layers}
    return tuple(sorted({stage for stage, layer in found if stage >= 0 and layer < partition[stage].end}))


def _under_all_names(index: CheckpointIndex) -> CheckpointIndex:
    """Return the index with each tensor under its second names too."""
    tensors = {tensor.name: tensor for tensor in under_all_names(index.tensors.values(), index.aliases)}
    return replace(index, tensors=tensors)


def _joint_role(role: Role, others: Mapping[str, Role]) -> Role:
    """Return the role of a tensor that has second names: it is needed wherever one of them is."""
    sides = {role.side, *(other.side for other in others.values())}
    reason = f"{role.reason}; by the file's metadata it is {', '.join(others)} too"
    if sides <= {Side.LAYER, Side.SHARED}:
        return Role(Side.SHARED, reason)
    return Role(sides.pop() if len(sides) == 1 else Side.ENDS, reason)


def _with_the_state(structure: Structure, partition: Partition) -> set[Reading]:
    """Return the readings whose layer has, by a placement of the user, tensors of its source in its own stage."""
    if not structure.placed:
        return set()
    moved = {
        (layer, stage)
        for name, placement in structure.placed.items()
        for layer in structure.decoder.layers_of(name)
        for stage in placement.stages(len(partition))
    }
    return {
        reading
        for reading in structure.readings
        if any((reading.source, stage) in moved for stage in _owners((reading.reader,), partition))
    }


def _placed_role(placement: Placement | None) -> Role:
    return Role(Side.PLACED, f"placed by --place {placement}")


class _OutsideTensors:
    """Finds the roles of the tensors outside the decoder layers."""

    def __init__(self, index: CheckpointIndex, decoder: Decoder) -> None:
        self._index, self._path = index, decoder.prefix.split(".")[:-1]
        self._prefix = decoder.prefix
        self._composite = takes_more_than_text(index.config)
        outside = [
            tensor
            for name, tensor in index.tensors.items()
            if name not in decoder.layer_of and name not in decoder.predicting
        ]
        other = TOWER_WORDS - BRIDGE_WORDS
        self._takes_more = self._composite or any(
            words_of(name) & other for name in (*index.config, *(tensor.name for tensor in outside))
        )
        relative = [tensor._replace(name=self._below_path(tensor.name)[1]) for tensor in outside]
        self._evidence = projection_evidence(relative, index.config)

    def role(self, tensor: TensorInfo, placement: Placement | None) -> Role:
        """Return the role of a tensor; one below the text model's path is part of the text model.

        Raises:
            ZppError: (INVALID) it is large, nothing shows where it is needed, and the user has not placed it.
        """
        common, relative = self._below_path(tensor.name)
        text_depth = next(
            (depth for depth, part in enumerate(self._path, 1) if words_of(part) & TEXT_WORDS), len(self._path)
        )
        evidence = self._evidence.get(relative.partition(".")[0], Evidence())
        role = outside_role(
            relative,
            tensor.nbytes,
            beside_decoder=self._composite and common < text_depth,
            takes_more_than_text=self._takes_more,
            by_shape=evidence.by_shape,
            by_config=evidence.by_config,
        )
        if role is None and placement is None:
            raise _unclear_tensor(self._index, tensor, self._prefix)
        return role or _placed_role(placement)

    def _below_path(self, name: str) -> tuple[int, str]:
        """Return how many components a name shares with the path of the layers, and the rest of it."""
        parts = name.split(".")
        common = 0
        while common < min(len(self._path), len(parts) - 1) and self._path[common] == parts[common]:
            common += 1
        return common, ".".join(parts[common:])


def _unclear_tensor(index: CheckpointIndex, tensor: TensorInfo, prefix: str) -> ZppError:
    return invalid_error(
        f"{index.directory}: it is not clear which stage needs tensor {tensor.name} ({tensor.dtype} "
        f"{list(tensor.shape)}), which is outside the decoder layers {prefix}",
        f"if you know it, say so: zpptool split --place '{tensor.name}=first' (or last, all, a stage's number)",
    )


def _separated_layers(joined: Mapping[int, str], layer: int, num_layers: int) -> ZppError:
    first = next(start for start in range(layer, -1, -1) if start not in joined)
    last = next((end for end in range(layer, num_layers) if end not in joined), num_layers)
    return invalid_error(
        f"the model cannot be split before layer {layer}: {joined[layer]}",
        f"give --ranges that keep layers {first}-{last} in one stage",
    )
