# SPDX-License-Identifier: Apache-2.0
"""Names and labels of the objects of a pipeline. Objects of a stage, and no others, have its number as a label."""

from __future__ import annotations

from typing import Any

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.stageunit import StageUnit

STAGE = "zpptool/stage"
PLAN = "zpptool/plan-digest"

Object = dict[str, Any]


def pipeline_labels(deployment: Deployment) -> dict[str, str]:
    """Return the labels of everything that belongs to the pipeline."""
    return {"app.kubernetes.io/name": "zpptool", "app.kubernetes.io/instance": deployment.name}


def stage_labels(deployment: Deployment, stage: int) -> dict[str, str]:
    """Return the labels of everything that belongs to one stage."""
    return {**pipeline_labels(deployment), STAGE: str(stage)}


def metadata(deployment: Deployment, name: str, unit: StageUnit | None = None) -> Object:
    """Return an object's metadata: name, labels, and the digest of the plan as an annotation."""
    labels = pipeline_labels(deployment) if unit is None else stage_labels(deployment, unit.stage)
    return {"name": name, "labels": labels, "annotations": {PLAN: deployment.plan.digest}}


def keys_secret(unit: StageUnit) -> str:
    """Return the name of the Secret that holds a stage's keys."""
    return f"{unit.name}-keys"
