# SPDX-License-Identifier: Apache-2.0
"""How the objects of a pipeline are named and told apart: every object of a stage, and no other, bears its number."""

from __future__ import annotations

from typing import Any

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.stageunit import StageUnit

STAGE = "zpptool/stage"
PLAN = "zpptool/plan-digest"

Object = dict[str, Any]


def pipeline_labels(wish: Deployment) -> dict[str, str]:
    """Of everything that belongs to the pipeline."""
    return {"app.kubernetes.io/name": "zpptool", "app.kubernetes.io/instance": wish.name}


def stage_labels(wish: Deployment, stage: int) -> dict[str, str]:
    """Of everything that belongs to one stage."""
    return {**pipeline_labels(wish), STAGE: str(stage)}


def metadata(wish: Deployment, name: str, unit: StageUnit | None = None) -> Object:
    """An object's name, labels, and the plan it was made from."""
    labels = pipeline_labels(wish) if unit is None else stage_labels(wish, unit.stage)
    return {"name": name, "labels": labels, "annotations": {PLAN: wish.plan.digest}}


def keys_secret(unit: StageUnit) -> str:
    """The Secret that holds a stage's keys."""
    return f"{unit.name}-keys"
