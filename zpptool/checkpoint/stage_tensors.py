# SPDX-License-Identifier: Apache-2.0
"""Answer an engine's questions about a checkpoint: which bytes a stage needs, and which model a directory holds.

The answers are the same for a full checkpoint and for the stage directories split from it.
"""

from __future__ import annotations

from pathlib import Path

from zpptool.checkpoint.aliases import under_all_names
from zpptool.checkpoint.digest import model_digest_of, tensors_digest
from zpptool.checkpoint.index import CheckpointIndex, TensorInfo, read_index
from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.model_config import read_config, stated_layer_count, unknown_layer_count
from zpptool.checkpoint.structure import infer_structure, stage_tensors
from zpptool.errors import invalid_error
from zpptool.partition import Partition


def load_plan(directory: Path, stage: int, partition: Partition) -> list[TensorInfo]:
    """Return the tensors that `stage` of `partition` owns, ordered by file and by offset in it.

    A tensor that has second names is listed under each of them.

    Args:
        directory: a full checkpoint, or the stage directory of this stage.
        stage: number of the stage, from 0.
        partition: the layer ranges of all stages.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read or split, or the stage directory belongs to another stage or
            another partition, or lacks a tensor.
    """
    if not 0 <= stage < len(partition):
        raise invalid_error(f"there is no stage {stage} of {len(partition)}")
    index = read_index(directory)
    if not is_stage_directory(directory):
        return under_all_names(stage_tensors(index, partition, stage), index.aliases)
    manifest = load_manifest(directory)
    if manifest.stage != stage:
        raise invalid_error(f"{directory} holds stage {manifest.stage}, not stage {stage}", "name the other directory")
    if manifest.ranges != partition:
        wanted = " ".join(map(str, partition))
        raise invalid_error(
            f"{directory} was split as {' '.join(map(str, manifest.ranges))}, not as {wanted}",
            f"split again with --ranges {wanted}, or run with the ranges of the split",
        )
    for entry in manifest.tensors:
        held = index.tensors.get(entry.name)
        if held is None or (held.dtype, held.shape) != (entry.dtype, entry.shape):
            fault = "is missing" if held is None else "has another dtype or shape than in its manifest"
            raise invalid_error(f"{directory}: tensor {entry.name} {fault}", "`zpptool validate` lists all faults")
    return under_all_names((index.tensors[entry.name] for entry in manifest.tensors), index.aliases)


def count_layers(directory: Path) -> int:
    """Return the number of decoder layers of a full checkpoint, from config.json or else from the tensor names.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read, or neither determines the number.
    """
    config = read_config(directory)
    stated = stated_layer_count(config)
    if stated is not None:
        return stated
    if not any(directory.glob("*.safetensors")):
        raise unknown_layer_count()
    return infer_structure(read_index(directory)).num_layers


def model_digest(directory: Path) -> str:
    """Return the identity of a model: a digest of its config and of the names, dtypes and shapes of all its tensors.

    It is the same for a checkpoint and for each of its stage directories. Tensor bytes are not part of it.

    Raises:
        ZppError: (INVALID) the directory is neither a checkpoint nor a stage directory.
    """
    if is_stage_directory(directory):
        return model_digest_of(read_config(directory), load_manifest(directory).tensors_digest)
    return index_digest(read_index(directory))


def index_digest(index: CheckpointIndex) -> str:
    """Return the model digest of a full checkpoint, from its index."""
    return model_digest_of(index.config, tensor_list_digest(index))


def tensor_list_digest(index: CheckpointIndex) -> str:
    """Return the digest of a checkpoint's tensor list, a part of the model digest."""
    return tensors_digest((tensor.name, tensor.dtype, tensor.shape) for tensor in index.tensors.values())
