# SPDX-License-Identifier: Apache-2.0
"""Objects for the operation of a pipeline: its disruption budget and its Prometheus ServiceMonitor."""

from __future__ import annotations

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


def service_monitor(deployment: Deployment, head: StageUnit) -> Object:
    """Return the ServiceMonitor (a custom resource of the Prometheus operator) for the head's `/metrics`."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(deployment, deployment.name, head),
        "spec": {
            "selector": {"matchLabels": stage_labels(deployment, head.stage)},
            "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
        },
    }
