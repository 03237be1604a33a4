# SPDX-License-Identifier: Apache-2.0
"""Check that the manifests of a split together describe one whole model. Pure: no tensor bytes are read here.

Every layer must be owned once, every tensor must be in the stages that the structure rule assigns it to, and all
manifests must come from one split of one model. The union of the tensor lists is compared with the model digest, so
that a tensor missing from every manifest is detected too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zpptool.checkpoint.aliases import tensor_aliases
from zpptool.checkpoint.decoder import MAX_LAYER_DIGITS
from zpptool.checkpoint.digest import model_digest_of, source_digest_of, tensors_digest
from zpptool.checkpoint.faults import SplitFault, SplitFaultCode
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.manifest import Manifest
from zpptool.checkpoint.placement import Placement
from zpptool.checkpoint.roles import PREDICTION
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.errors import ZppError
from zpptool.partition import check_ranges

_SAME = (
    "num_stages", "num_layers", "partition", "model_digest", "sample_digest", "tensors_digest", "layer_prefix",
    "dropped_tensors", "placements",
)  # fmt: skip


def check_agreement(manifests: Mapping[int, Manifest], config: dict[str, Any], directory: Path) -> list[SplitFault]:
    """Return all inconsistencies between the stages of one split.

    Args:
        manifests: the manifests that could be read, keyed by the number in the stage directory's name.
        config: the model's config.json, read from one of the stages.
        directory: the split's directory, for messages.
    """
    faults = [
        SplitFault(SplitFaultCode.STAGES, f"stage {place} holds the manifest of stage {manifest.stage}", place)
        for place, manifest in manifests.items()
        if manifest.stage != place
    ]
    first = manifests[min(manifests)]
    faults += _differences(manifests, first)
    faults += [
        SplitFault(SplitFaultCode.STAGES, f"stage {stage} of {first.num_stages} is missing from {directory}", stage)
        for stage in range(first.num_stages)
        if stage not in manifests
    ]
    faults += [
        SplitFault(SplitFaultCode.STAGES, f"stage {place} is beyond the {first.num_stages} stages of the split", place)
        for place in manifests
        if place >= first.num_stages
    ]
    _ranges, range_faults = check_ranges([str(layers) for layers in first.ranges], first.num_layers, first.num_stages)
    faults += [SplitFault(SplitFaultCode.RANGES, fault.message, fault.stage) for fault in range_faults]
    return faults or _check_whole(manifests, config, directory)


def _differences(manifests: Mapping[int, Manifest], first: Manifest) -> Iterable[SplitFault]:
    for place, manifest in manifests.items():
        other = [name for name in _SAME if getattr(manifest, name) != getattr(first, name)]
        if manifest.source_digest and first.source_digest and manifest.source_digest != first.source_digest:
            other.append("source_digest")
        if other:
            message = f"stage {place} belongs to another split than stage {first.stage}: {', '.join(other)} differ"
            yield SplitFault(SplitFaultCode.STAGES, message, place)


def _check_whole(manifests: Mapping[int, Manifest], config: dict[str, Any], directory: Path) -> list[SplitFault]:
    """Compare the tensors of all stages with the model's tensor list, its content digest, and the structure rule."""
    first = manifests[0]
    tensors: dict[str, TensorInfo] = {}
    hashes: dict[str, str] = {}
    faults: list[SplitFault] = []
    for stage, manifest in manifests.items():
        for entry in manifest.tensors:
            tensor = TensorInfo(entry.name, entry.dtype, entry.shape, directory, 0, entry.nbytes)
            same_kind = tensors.setdefault(entry.name, tensor) == tensor
            same_bytes = not entry.blake3 or hashes.setdefault(entry.name, entry.blake3) == entry.blake3
            if not (same_kind and same_bytes):
                message = f"stage {stage}: tensor {entry.name} differs from the copy in an earlier stage"
                faults.append(SplitFault(SplitFaultCode.TENSOR, message, stage, entry.name))
    kinds = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors.values()]
    held = tensors_digest([*kinds, *((tensor.name, tensor.dtype, tensor.shape) for tensor in first.dropped_tensors)])
    if held != first.tensors_digest:
        message = "the stages together do not hold the model's tensors: some are missing, extra, or reshaped"
        hint = "; ".join(_odd_layers(tensors, first.layer_prefix))
        faults.append(SplitFault(SplitFaultCode.MISSING, f"{message} ({hint})" if hint else message))
    elif hashes.keys() == tensors.keys() and _other_content(manifests, source_digest_of(hashes)):
        faults.append(SplitFault(SplitFaultCode.BYTES, "the stages together do not hold the content of the model"))
    if model_digest_of(config, first.tensors_digest) != first.model_digest:
        faults.append(SplitFault(SplitFaultCode.FILE, "config.json is not the one that the model was split with"))
        return faults
    return faults + list(_misplaced(manifests, CheckpointIndex(directory, config, tensors, ())))


def _odd_layers(names: Iterable[str], prefix: str) -> list[str]:
    """Describe each tensor that exactly one layer lacks: a hint at a tensor that no manifest lists any more."""
    layers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        number, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
        if dot and number.isascii() and number.isdigit() and len(number) <= MAX_LAYER_DIGITS:
            layers[rest].add(int(number))
    everywhere = set().union(*layers.values())
    lacking = [(min(everywhere - held), rest) for rest, held in layers.items() if len(everywhere - held) == 1]
    return [f"layer {layer} has no {rest}" for layer, rest in sorted(lacking)]


def _other_content(manifests: Mapping[int, Manifest], digest: str) -> bool:
    return any(manifest.source_digest not in ("", digest) for manifest in manifests.values())


def _misplaced(manifests: Mapping[int, Manifest], union: CheckpointIndex) -> Iterable[SplitFault]:
    first = manifests[0]
    dropped = {
        tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.shape, Path(), 0, 0)
        for tensor in first.dropped_tensors
    }
    tensors = {**union.tensors, **dropped}
    metadata = [file.metadata for manifest in manifests.values() for file in manifest.weight_files]
    placements = [Placement(pattern, where) for pattern, where in first.placements]
    try:
        whole = replace(union, tensors=tensors, aliases=tensor_aliases(metadata, tensors))
        structure = infer_structure(whole, placements)
        wanted = assign(structure, first.ranges, drop_prediction=bool(dropped)).stages
    except ZppError as fault:
        yield SplitFault(SplitFaultCode.STAGES, f"the stages together do not form a model: {fault.message}")
        return
    for name in dropped:
        if structure.roles[name] != PREDICTION:
            message = f"no stage holds tensor {name}, which may not be left out"
            yield SplitFault(SplitFaultCode.MISSING, message, None, name)
    for stage, manifest in manifests.items():
        held = {entry.name for entry in manifest.tensors}
        for name in sorted(held - set(wanted[stage])):
            message = f"stage {stage} holds tensor {name}, which it does not need"
            yield SplitFault(SplitFaultCode.EXTRA, message, stage, name)
        for name in sorted(set(wanted[stage]) - held):
            yield SplitFault(SplitFaultCode.MISSING, f"stage {stage} lacks tensor {name}", stage, name)
