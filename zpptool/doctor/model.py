# SPDX-License-Identifier: Apache-2.0
"""Can the model be read here? A checkpoint's headers, a split's manifests, or the plan against either; no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.structure import infer_structure
from zpptool.config.plan import plan_faults
from zpptool.doctor.finding import Finding, blocker, ok
from zpptool.doctor.target import Target
from zpptool.errors import ZppError

CHECK = "model"


def check_model(patient: Target) -> Iterator[Finding]:
    """The plan, and the model where it is named."""
    directory = patient.directory
    if patient.plan is not None:
        for fault in plan_faults(patient.plan):
            yield blocker("plan", fault, "zpptool plan writes a new one.")
    if directory is None:
        return
    if not directory.is_dir():
        yield blocker(CHECK, f"{directory} is no directory on this machine", "Copy it here, or name where it lies.")
        return
    try:
        yield ok(CHECK, describe(directory))
        if patient.plan is not None and not _is_split(directory):
            for fault in plan_faults(patient.plan, directory):
                yield blocker(CHECK, fault, "Take the model that was planned for, or plan again.")
    except ZppError as fault:
        yield blocker(CHECK, fault.message, fault.hint or "zpptool validate says more.")


def describe(directory: Path) -> str:
    """What a directory holds.

    Raises:
        ZppError: (INVALID) it is no checkpoint, no stage and no split.
    """
    if is_stage_directory(directory):
        own = load_manifest(directory)
        return f"{directory}: stage {own.stage} of {len(own.ranges)}, layers {own.layers}"
    if _is_split(directory):
        found = sorted(path.parent.name for path in directory.glob("stage_*/zpp-stage.json"))
        for name in found:
            load_manifest(directory / name)
        return f"{directory}: {', '.join(found)}"
    index = read_index(directory)
    return f"{directory}: {infer_structure(index).num_layers} layers, {len(index.tensors)} tensors"


def _is_split(directory: Path) -> bool:
    return any(directory.glob("stage_*/zpp-stage.json"))
