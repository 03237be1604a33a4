# SPDX-License-Identifier: Apache-2.0
"""The StatefulSet of one stage: exactly one pod, which fetches its own tensors only and then runs.

More than one replica would corrupt output: a link with two receivers deals its messages out in turn. All stages start
at the same time, in any order.
"""

from __future__ import annotations

from typing import Any

from zpptool.deploy.deployment import Deployment, Device
from zpptool.deploy.kubernetes.labels import PLAN, Object, keys_secret, metadata, stage_labels
from zpptool.deploy.kubernetes.source import fetching, source_volumes
from zpptool.deploy.stageunit import GIB, MODELS, START_S, StageUnit, link_environment

HEALTH = "/health"
"""The head's own health: 200 once a request would be served; nothing listens before, 503 when the ring is broken."""
KEYS = "/run/zpptool/keys"
SECRET = "/run/zpptool/secret"
USER = 1000


def stateful_set(wish: Deployment, unit: StageUnit) -> Object:
    """One stage's StatefulSet."""
    labels = stage_labels(wish, unit.stage)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(wish, unit.name, unit),
        "spec": {
            "replicas": 1,
            "serviceName": unit.name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {PLAN: wish.plan.digest}},
                "spec": _pod(wish, unit),
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "model"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": f"{unit.disk_bytes // GIB}Gi"}},
                    },
                }
            ],
        },
    }


def _pod(wish: Deployment, unit: StageUnit) -> Object:
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        *source_volumes(wish),
    ]
    if not wish.insecure:
        volumes += [
            {"name": "secret", "secret": {"secretName": keys_secret(unit)}},
            {"name": "keys", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]
    return {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            {**_container(wish, "fetch", list(unit.fetch)), **fetching(wish)},
            *([] if wish.insecure else [_own_keys(wish)]),
        ],
        "containers": [_stage(wish, unit)],
        "volumes": volumes,
    }


def _stage(wish: Deployment, unit: StageUnit) -> Object:
    mounts = [
        {"name": "model", "mountPath": MODELS, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if not wish.insecure:
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    environment = {"HOME": "/tmp", **link_environment(wish, f"{KEYS}/stage.keys")}
    ports: list[Object] = [{"name": "link", "containerPort": unit.port}]
    if unit.api_port is not None:
        ports.append({"name": "http", "containerPort": unit.api_port})
    return {
        **_container(wish, "stage", list(unit.run)),
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": ports,
        "resources": _resources(wish, unit),
        "volumeMounts": mounts,
        **_probes(unit),
    }


def _probes(unit: StageUnit) -> Object:
    """The head answers for the whole ring. A stage holds its port from before it loads until it ends; a probe that
    connects to it speaks no ZeroMQ, is refused, and disturbs nobody."""
    check: Object = {"tcpSocket": {"port": "link"}}
    if unit.api_port is not None:
        check = {"httpGet": {"path": HEALTH, "port": "http"}}
    return {
        "startupProbe": {**check, "periodSeconds": 10, "failureThreshold": START_S // 10},
        "readinessProbe": {**check, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 5},
        "livenessProbe": {**check, "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
    }


def _resources(wish: Deployment, unit: StageUnit) -> Object:
    memory = f"{unit.memory_bytes // GIB}Gi"
    limits: Object = {"memory": memory}
    requests: Object = {"cpu": "4" if wish.device is Device.CPU else "2", "memory": memory}
    if wish.device is Device.CUDA:
        limits["nvidia.com/gpu"] = 1
        requests["nvidia.com/gpu"] = 1
    return {"requests": requests, "limits": limits}


def _own_keys(wish: Deployment) -> Object:
    """zpptool reads keys only from files that are its own; what a Secret mounts belongs to root and the group."""
    words = ["install", "-m", "0600", f"{SECRET}/stage.keys", f"{KEYS}/stage.keys"]
    mounts = [
        {"name": "secret", "mountPath": SECRET, "readOnly": True},
        {"name": "keys", "mountPath": KEYS},
    ]
    return {**_container(wish, "keys", words), "volumeMounts": mounts}


def _container(wish: Deployment, name: str, words: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": wish.image,
        "command": [word.replace("$", "$$") for word in words],  # $(X) would be a variable, and $$ one $
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
