# SPDX-License-Identifier: Apache-2.0
"""The front of a pipeline: `zpptool serve` before the head, with an API key, retries and metrics of its own."""

from __future__ import annotations

from zpptool.deploy.cluster_settings import Front
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import PLAN, Object, pipeline_labels
from zpptool.deploy.kubernetes.workload import USER
from zpptool.deploy.stageunit import DRAIN_S, END_S, PRE_STOP_S, StageUnit

ROLE = "app.kubernetes.io/component"
KEY_ENTRY = "api-key"
MEMORY = "1Gi"


def front_name(deployment: Deployment) -> str:
    """Return the name of the front's Deployment and Service."""
    return f"{deployment.name}-front"


def front_labels(deployment: Deployment) -> dict[str, str]:
    """Return the labels of the front's pods; they are no part of the ring."""
    return {**pipeline_labels(deployment), "app.kubernetes.io/instance": front_name(deployment), ROLE: "front"}


def front_objects(deployment: Deployment, front: Front, head: StageUnit, api: str) -> list[Object]:
    """Return the front's Deployment and its Service.

    Args:
        deployment: the deployment.
        front: its settings.
        head: stage 0, whose API it asks.
        api: name of the Service of that API.
    """
    labels = front_labels(deployment)
    own = {"name": front_name(deployment), "labels": labels, "annotations": {PLAN: deployment.plan.digest}}
    service = {
        "selector": labels,
        "ports": [{"name": "http", "port": front.port, "targetPort": "http"}],
    }
    workload = {
        "replicas": front.replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": _pod(deployment, front, f"http://{api}:{head.api_port}")},
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": own, "spec": service},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": own, "spec": workload},
    ]


def _pod(deployment: Deployment, front: Front, upstream: str) -> Object:
    command = ["zpptool", "serve", "--upstream", upstream, "--host", "0.0.0.0", "--port", str(front.port)]
    for host in (front_name(deployment), "*.svc", "*.svc.cluster.local", *front.hosts):
        command += ["--allowed-host", host]
    check: Object = {"httpGet": {"path": "/health", "port": "http"}}
    key = {"secretKeyRef": {"name": front.api_key_secret, "key": KEY_ENTRY}}
    pull = deployment.settings.image_pull_secrets
    return {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": PRE_STOP_S + DRAIN_S + END_S,
        **({"imagePullSecrets": [{"name": name} for name in pull]} if pull else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "front",
                "image": deployment.image,
                "command": command,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "ZPP_API_KEY", "valueFrom": key}],
                "ports": [{"name": "http", "containerPort": front.port}],
                "resources": {"requests": {"cpu": "500m", "memory": MEMORY}, "limits": {"memory": MEMORY}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
                "readinessProbe": {**check, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 5},
                "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
