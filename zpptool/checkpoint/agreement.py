# SPDX-License-Identifier: Apache-2.0
"""Do the manifests of a split, taken together, account for one whole model? Pure: no tensor byte is read here.

Every layer once, every tensor of the model where the structure rule wants it, all of one split of one model. A
manifest's tensor list is held against the model digest, so that a tensor left out of all of them is seen too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zpptool.checkpoint.decoder import MAX_LAYER_DIGITS
from zpptool.checkpoint.digest import model_digest_of, source_digest_of, tensors_digest
from zpptool.checkpoint.faults import SplitFault, SplitFaultCode
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.manifest import Manifest
from zpptool.checkpoint.roles import PREDICTION
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.errors import ZppError
from zpptool.partition import check_ranges

_SAME = (
    "num_stages", "num_layers", "partition", "model_digest", "sample_digest", "tensors_digest", "layer_prefix",
    "dropped_tensors",
)  # fmt: skip


def check_agreement(manifests: Mapping[int, Manifest], config: dict[str, Any], directory: Path) -> list[SplitFault]:
    """All faults between the stages of one split.

    Args:
        manifests: by the number in the stage directory's name; those that could be read.
        config: of the model, as one of the stages carries it.
        directory: of the split, for messages.
    """
    faults = [
        SplitFault(SplitFaultCode.STAGES, f"stage {place} holds the manifest of stage {own.stage}", place)
        for place, own in manifests.items()
        if own.stage != place
    ]
    first = manifests[min(manifests)]
    faults += _differences(manifests, first)
    faults += [
        SplitFault(SplitFaultCode.STAGES, f"stage {stage} of {first.num_stages} is missing from {directory}", stage)
        for stage in range(first.num_stages)
        if stage not in manifests
    ]
    faults += [
        SplitFault(SplitFaultCode.STAGES, f"stage {place} is one more than the {first.num_stages} of the split", place)
        for place in manifests
        if place >= first.num_stages
    ]
    _ranges, range_faults = check_ranges([str(own) for own in first.ranges], first.num_layers, first.num_stages)
    faults += [SplitFault(SplitFaultCode.RANGES, fault.message, fault.stage) for fault in range_faults]
    return faults or _check_whole(manifests, config, directory)


def _differences(manifests: Mapping[int, Manifest], first: Manifest) -> Iterable[SplitFault]:
    for place, own in manifests.items():
        other = [name for name in _SAME if getattr(own, name) != getattr(first, name)]
        if own.source_digest and first.source_digest and own.source_digest != first.source_digest:
            other.append("source_digest")
        if other:
            message = f"stage {place} is of another split than stage {first.stage}: {', '.join(other)} differ"
            yield SplitFault(SplitFaultCode.STAGES, message, place)


def _check_whole(manifests: Mapping[int, Manifest], config: dict[str, Any], directory: Path) -> list[SplitFault]:
    """The tensors of all stages against the model's tensor list, its content, and the structure rule."""
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
                message = f"stage {stage}: tensor {entry.name} is not the one that an earlier stage holds"
                faults.append(SplitFault(SplitFaultCode.TENSOR, message, stage, entry.name))
    kinds = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors.values()]
    held = tensors_digest([*kinds, *((gone.name, gone.dtype, gone.shape) for gone in first.dropped_tensors)])
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
    """What a layer lacks that all other layers have: where to look for a tensor that nothing names any more."""
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
    dropped = {gone.name: TensorInfo(gone.name, gone.dtype, gone.shape, Path(), 0, 0) for gone in first.dropped_tensors}
    try:
        structure = infer_structure(replace(union, tensors={**union.tensors, **dropped}))
        wanted = assign(structure, first.ranges, drop_prediction=bool(dropped)).stages
    except ZppError as fault:
        yield SplitFault(SplitFaultCode.STAGES, f"the stages together make no model: {fault.message}")
        return
    for name in dropped:
        if structure.roles[name] != PREDICTION:
            message = f"no stage holds tensor {name}, which is none that may be left out"
            yield SplitFault(SplitFaultCode.MISSING, message, None, name)
    for stage, manifest in manifests.items():
        held = {entry.name for entry in manifest.tensors}
        for name in sorted(held - set(wanted[stage])):
            message = f"stage {stage} holds tensor {name}, which it does not need"
            yield SplitFault(SplitFaultCode.EXTRA, message, stage, name)
        for name in sorted(set(wanted[stage]) - held):
            yield SplitFault(SplitFaultCode.MISSING, f"stage {stage} lacks tensor {name}", stage, name)
