# SPDX-License-Identifier: Apache-2.0
"""Where the pod of a stage reads the checkpoint: the Hub, or a claim that holds it and is mounted read-only."""

from __future__ import annotations

import re

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object
from zpptool.deploy.stageunit import MODELS, SOURCE
from zpptool.errors import usage_error

_CLAIM = re.compile(r"pvc://(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/(?P<path>[\w.-]+(/[\w.-]+)*))?")


def split_source(wish: Deployment) -> str:
    """What the init container splits: a model on the Hub, or a directory under `SOURCE`.

    Raises:
        ZppError: (USAGE) the source is neither.
    """
    if wish.is_hub:
        return wish.source
    found = _claim(wish)
    return f"{SOURCE}/{found['path']}" if found["path"] else SOURCE


def source_volumes(wish: Deployment) -> list[Object]:
    """The volume that holds the checkpoint, if it is not on the Hub."""
    if wish.is_hub:
        return []
    return [{"name": "source", "persistentVolumeClaim": {"claimName": _claim(wish)["claim"], "readOnly": True}}]


def fetching(wish: Deployment) -> Object:
    """What the init container needs beside its words; a token for gated models comes from an optional Secret."""
    mounts: list[Object] = [{"name": "model", "mountPath": MODELS}, {"name": "tmp", "mountPath": "/tmp"}]
    env: list[Object] = [{"name": "HOME", "value": "/tmp"}]
    if wish.is_hub:
        token = {"name": f"{wish.name}-hub", "key": "token", "optional": True}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
    else:
        mounts.append({"name": "source", "mountPath": SOURCE, "readOnly": True})
    memory = {"memory": "2Gi"}
    return {"env": env, "volumeMounts": mounts, "resources": {"requests": {"cpu": "1", **memory}, "limits": memory}}


def _claim(wish: Deployment) -> re.Match[str]:
    found = _CLAIM.fullmatch(wish.source)
    if found is None:
        raise usage_error(
            f"{wish.source!r} is nothing that a pod can read",
            "Give --model hf://org/name@revision, or --model pvc://claim/path for a claim that holds the checkpoint.",
        )
    return found
