# SPDX-License-Identifier: Apache-2.0
"""Check that the model's headers or manifests can be read, without its weights, and that the plan fits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.structure import infer_structure
from zpptool.config.plan import PipelinePlan, plan_faults
from zpptool.console import human_bytes
from zpptool.doctor.finding import Finding, blocker, ok
from zpptool.doctor.target import Target
from zpptool.errors import ZppError
from zpptool.sources.names import ModelName
from zpptool.sources.opened import open_model

CHECK = "model"


def check_model(target: Target) -> Iterator[Finding]:
    """Check the plan, and the model if one is given."""
    if target.plan is not None:
        for fault in plan_faults(target.plan):
            yield blocker("plan", fault, "Make a new plan with zpptool plan.")
    if target.model is None:
        return
    try:
        remote = target.model.remote is not None
    except ZppError as cause:
        yield blocker(CHECK, cause.message, cause.hint or "")
        return
    if remote:
        yield from _check_remote(target.model, target.plan)
        return
    directory = Path(target.model.text)
    if not directory.is_dir():
        yield blocker(CHECK, f"{directory} is not a directory on this machine", "Copy it here, or give its path.")
        return
    try:
        yield ok(CHECK, describe(directory))
        if target.plan is not None and not _is_split(directory):
            for fault in plan_faults(target.plan, directory):
                yield blocker(CHECK, fault, "Use the model that was planned for, or plan again.")
    except ZppError as fault:
        yield blocker(CHECK, fault.message, fault.hint or "zpptool validate lists all faults.")


def _check_remote(model: ModelName, plan: PipelinePlan | None) -> Iterator[Finding]:
    """Check a model on the Hub or at a URL: that it is cached here, or can be read from there."""
    try:
        with open_model(model) as opened:
            index = read_index(opened.directory)
            layers = infer_structure(index).num_layers
            where = f"whole in {opened.directory}" if opened.is_local else f"{human_bytes(index.nbytes)} to be fetched"
            yield ok(CHECK, f"{opened.name}: {layers} layers, {len(index.tensors)} tensors, {where}")
            for fault in plan_faults(plan, opened.directory) if plan is not None else ():
                yield blocker(CHECK, fault, "Use the model that was planned for, or plan again.")
    except ZppError as cause:
        yield blocker(CHECK, cause.message, cause.hint or "Check the name of the model.")


def describe(directory: Path) -> str:
    """Describe the content of a model directory in one line.

    Raises:
        ZppError: (INVALID) it is not a checkpoint, a stage or a split.
    """
    if is_stage_directory(directory):
        manifest = load_manifest(directory)
        return f"{directory}: stage {manifest.stage} of {len(manifest.ranges)}, layers {manifest.layers}"
    if _is_split(directory):
        found = sorted(path.parent.name for path in directory.glob("stage_*/zpp-stage.json"))
        for name in found:
            load_manifest(directory / name)
        return f"{directory}: {', '.join(found)}"
    index = read_index(directory)
    return f"{directory}: {infer_structure(index).num_layers} layers, {len(index.tensors)} tensors"


def _is_split(directory: Path) -> bool:
    return any(directory.glob("stage_*/zpp-stage.json"))
