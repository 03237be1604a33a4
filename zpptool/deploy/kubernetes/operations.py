# SPDX-License-Identifier: Apache-2.0
"""Objects for the operation of a pipeline: its disruption budget, its monitor and its inference pool."""

from __future__ import annotations

from zpptool.deploy.cluster_settings import InferencePool
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, metadata, pipeline_labels, stage_labels
from zpptool.deploy.stageunit import StageUnit


def disruption_budget(deployment: Deployment) -> Object:
    """Return the disruption budget: a drain evicts one pod at a time, and none while another is not ready."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, deployment.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pipeline_labels(deployment)}},
    }


def monitor(deployment: Deployment, head: StageUnit) -> Object:
    """Return the ServiceMonitor or PodMonitor (resources of the Prometheus operator) for the head's `/metrics`."""
    settings = deployment.settings.monitor
    endpoints = "endpoints" if settings.kind == "ServiceMonitor" else "podMetricsEndpoints"
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": settings.kind,
        "metadata": metadata(deployment, deployment.name, head),
        "spec": {
            "selector": {"matchLabels": stage_labels(deployment, head.stage)},
            endpoints: [{"port": "http", "path": "/metrics", "interval": settings.interval}],
        },
    }


def inference_pool(deployment: Deployment, settings: InferencePool, head: StageUnit) -> Object:
    """Return the InferencePool (Gateway API inference extension) with the head's pod as its one endpoint."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": metadata(deployment, deployment.name, head),
        "spec": {
            "selector": {"matchLabels": stage_labels(deployment, head.stage)},
            "targetPorts": [{"number": head.api_port}],
            "endpointPickerRef": {
                "name": settings.endpoint_picker,
                "port": {"number": settings.endpoint_picker_port},
            },
        },
    }
