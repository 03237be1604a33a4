# SPDX-License-Identifier: Apache-2.0
"""What keeps a pipeline and watches it: the disruption budget and the ServiceMonitor."""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, metadata, pipeline_labels, stage_labels
from zpptool.deploy.stageunit import StageUnit


def disruption_budget(wish: Deployment) -> Object:
    """A drain takes one pod at a time, and none while the ring is not whole."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(wish, wish.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pipeline_labels(wish)}},
    }


def service_monitor(wish: Deployment, head: StageUnit) -> Object:
    """For the Prometheus operator, whose custom resource this is: `/metrics` of the head."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(wish, wish.name, head),
        "spec": {
            "selector": {"matchLabels": stage_labels(wish, head.stage)},
            "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
        },
    }
