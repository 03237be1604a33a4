# SPDX-License-Identifier: Apache-2.0
"""Where the pod of a stage reads the checkpoint: from the Hub, or from a volume claim that is mounted read-only."""

from __future__ import annotations

import re

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object
from zpptool.deploy.stageunit import MODELS, SOURCE
from zpptool.errors import usage_error

_CLAIM = re.compile(r"pvc://(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/(?P<path>[\w.-]+(/[\w.-]+)*))?")


def split_source(deployment: Deployment) -> str:
    """Return the source for the init container's fetch: a model on the Hub, or a directory under `SOURCE`.

    Raises:
        ZppError: (USAGE) the source is neither.
    """
    if deployment.is_hub:
        return deployment.source
    found = _claim(deployment)
    return f"{SOURCE}/{found['path']}" if found["path"] else SOURCE


def source_volumes(deployment: Deployment) -> list[Object]:
    """Return the volume that holds the checkpoint; none if it is on the Hub."""
    if deployment.is_hub:
        return []
    return [{"name": "source", "persistentVolumeClaim": {"claimName": _claim(deployment)["claim"], "readOnly": True}}]


def fetching(deployment: Deployment) -> Object:
    """Return environment, mounts and resources of the init container.

    The token for gated models comes from an optional Secret.
    """
    mounts: list[Object] = [{"name": "model", "mountPath": MODELS}, {"name": "tmp", "mountPath": "/tmp"}]
    env: list[Object] = [{"name": "HOME", "value": "/tmp"}]
    if deployment.is_hub:
        token = {"name": f"{deployment.name}-hub", "key": "token", "optional": True}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
    else:
        mounts.append({"name": "source", "mountPath": SOURCE, "readOnly": True})
    memory = {"memory": "2Gi"}
    return {"env": env, "volumeMounts": mounts, "resources": {"requests": {"cpu": "1", **memory}, "limits": memory}}


def _claim(deployment: Deployment) -> re.Match[str]:
    found = _CLAIM.fullmatch(deployment.source)
    if found is None:
        raise usage_error(
            f"{deployment.source!r} cannot be read by a pod",
            "Give --model hf://org/name@revision, or --model pvc://claim/path for a claim that holds the checkpoint.",
        )
    return found
