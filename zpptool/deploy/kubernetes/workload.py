# SPDX-License-Identifier: Apache-2.0
"""The StatefulSet of one stage: exactly one pod, which fetches only its own tensors and then runs.

There must be no second replica: a link has one receiver, and a stage refuses a second one. All stages start at the same
time, in any order.
"""

from __future__ import annotations

from typing import Any

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import PLAN, Object, keys_secret, metadata, stage_labels
from zpptool.deploy.kubernetes.source import fetching, source_volumes
from zpptool.deploy.stageunit import GIB, MODELS, PRE_STOP_S, START_S, StageUnit, link_environment, stop_limit_s

HEALTH = "/health"
"""Health endpoint of the head: 200 when requests are served, 503 when the ring is broken; it refuses connections before
all stages have loaded."""
KEYS = "/run/zpptool/keys"
SECRET = "/run/zpptool/secret"
USER = 1000


def stateful_set(deployment: Deployment, unit: StageUnit) -> Object:
    """Return the StatefulSet of one stage."""
    labels = stage_labels(deployment, unit.stage)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(deployment, unit.name, unit),
        "spec": {
            "replicas": 1,
            "serviceName": unit.name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {PLAN: deployment.plan.digest}},
                "spec": _pod(deployment, unit),
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


def _pod(deployment: Deployment, unit: StageUnit) -> Object:
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        *source_volumes(deployment),
    ]
    if not deployment.insecure:
        volumes += [
            {"name": "secret", "secret": {"secretName": keys_secret(unit)}},
            {"name": "keys", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]
    return {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": stop_limit_s(unit.stage),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            {**_container(deployment, unit, "fetch", list(unit.fetch)), **fetching(deployment)},
            *([] if deployment.insecure else [_own_keys(deployment, unit)]),
        ],
        "containers": [_stage(deployment, unit)],
        "volumes": volumes,
    }


def _stage(deployment: Deployment, unit: StageUnit) -> Object:
    mounts = [
        {"name": "model", "mountPath": MODELS, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if not deployment.insecure:
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    environment = {"HOME": "/tmp", **link_environment(deployment, f"{KEYS}/stage.keys")}
    ports: list[Object] = [{"name": "link", "containerPort": unit.port}]
    if unit.api_port is not None:
        ports.append({"name": "http", "containerPort": unit.api_port})
    return {
        **_container(deployment, unit, "stage", list(unit.run)),
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": ports,
        "resources": _resources(unit),
        "volumeMounts": mounts,
        **_probes(unit),
        **_before_stop(unit),
    }


def _before_stop(unit: StageUnit) -> Object:
    """Return the head's pause before SIGTERM, in which the Service drops it: from SIGTERM on it refuses requests."""
    if unit.api_port is None:
        return {}
    return {"lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}}}


def _probes(unit: StageUnit) -> Object:
    """Return the probes of a stage. The head's health endpoint covers the whole ring.

    Any other stage listens on its link port from before it loads until it ends. A probe only opens a TCP connection,
    without a ZeroMQ handshake; the stage drops it.
    """
    check: Object = {"tcpSocket": {"port": "link"}}
    if unit.api_port is not None:
        check = {"httpGet": {"path": HEALTH, "port": "http"}}
    return {
        "startupProbe": {**check, "periodSeconds": 10, "failureThreshold": START_S // 10},
        "readinessProbe": {**check, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 5},
        "livenessProbe": {**check, "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
    }


def _resources(unit: StageUnit) -> Object:
    memory = f"{unit.memory_bytes // GIB}Gi"
    limits: Object = {"memory": memory}
    requests: Object = {
        "cpu": str(unit.cpus or (2 if unit.gpus else 4 * unit.place.tensor_parallel_size)),
        "memory": memory,
    }
    if unit.gpus:
        limits["nvidia.com/gpu"] = len(unit.gpus)
        requests["nvidia.com/gpu"] = len(unit.gpus)
    return {"requests": requests, "limits": limits}


def _own_keys(deployment: Deployment, unit: StageUnit) -> Object:
    """Return the init container that copies the key file: zpptool must own it, and a Secret's files belong to root."""
    command = ["install", "-m", "0600", f"{SECRET}/stage.keys", f"{KEYS}/stage.keys"]
    mounts = [
        {"name": "secret", "mountPath": SECRET, "readOnly": True},
        {"name": "keys", "mountPath": KEYS},
    ]
    return {**_container(deployment, unit, "keys", command), "volumeMounts": mounts}


def _container(deployment: Deployment, unit: StageUnit, name: str, command: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": deployment.image_of(unit.place),
        "command": [
            argument.replace("$", "$$") for argument in command
        ],  # $(X) would be substituted; $$ is a literal $
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
