# SPDX-License-Identifier: Apache-2.0
"""A split may leave out prediction layers and nothing else, even if all its manifests list more as dropped."""

from __future__ import annotations

from pathlib import Path

import msgspec
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.agreement import check_agreement
from zpptool.checkpoint.manifest import DroppedTensor, Manifest, load_manifest
from zpptool.checkpoint.split import write_split
from zpptool.checkpoint.splitplan import plan_split

CONFIG = llama_config(num_nextn_predict_layers=1)
LOST = "model.layers.3.mlp.up_proj.weight"


def manifests_of(directory: Path) -> dict[int, Manifest]:
    """Return the manifests of a model split in two without its prediction layer."""
    kinds = {**llama(), "model.layers.4.eh_proj.weight": ("F32", (2, 2))}
    source = write_checkpoint(directory / "model", kinds, CONFIG)
    write_split(plan_split(source, 2, drop_prediction=True), directory / "out")
    return {stage: load_manifest(directory / f"out/stage_{stage}") for stage in range(2)}


def test_a_prediction_layer_may_be_left_out(tmp_path: Path) -> None:
    manifests = manifests_of(tmp_path)
    assert [tensor.name for tensor in manifests[0].dropped_tensors] == ["model.layers.4.eh_proj.weight"]
    assert check_agreement(manifests, CONFIG, tmp_path) == []


def test_a_decoder_tensor_may_not_be_left_out_even_if_all_manifests_drop_it(tmp_path: Path) -> None:
    manifests = manifests_of(tmp_path)
    lost = next(entry for entry in manifests[1].tensors if entry.name == LOST)
    dropped = (*manifests[0].dropped_tensors, DroppedTensor(lost.name, lost.dtype, lost.shape))
    forged = {
        stage: msgspec.structs.replace(
            manifest,
            dropped_tensors=dropped,
            source_digest="",
            tensors=tuple(entry for entry in manifest.tensors if entry.name != LOST),
        )
        for stage, manifest in manifests.items()
    }
    faults = check_agreement(forged, CONFIG, tmp_path)
    assert any(fault.tensor == LOST and "may not be left out" in fault.message for fault in faults)
