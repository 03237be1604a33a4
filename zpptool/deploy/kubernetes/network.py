# SPDX-License-Identifier: Apache-2.0
"""Services and network policies: a headless Service per stage, one for the API, and a policy for each link."""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, metadata, stage_labels
from zpptool.deploy.stageunit import StageUnit


def link_service(deployment: Deployment, unit: StageUnit) -> Object:
    """Return the headless Service of one stage.

    Its pod's address is published before the pod is ready, because readiness requires the ring to be connected.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, unit.name, unit),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": stage_labels(deployment, unit.stage),
            "ports": [{"name": "link", "port": unit.port, "targetPort": "link"}],
        },
    }


def api_service(deployment: Deployment, head: StageUnit) -> Object:
    """Return the Service for clients: stage 0's API, once it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, deployment.name, head),
        "spec": {
            "selector": stage_labels(deployment, head.stage),
            "ports": [{"name": "http", "port": head.api_port, "targetPort": "http"}],
        },
    }


def network_policy(deployment: Deployment, unit: StageUnit) -> Object:
    """Return the policy of one stage: its link is open to the receiving stage only, the API to the namespace."""
    receiver = {"podSelector": {"matchLabels": stage_labels(deployment, unit.receiver)}}
    ingress: list[Object] = [{"from": [receiver], "ports": [{"protocol": "TCP", "port": unit.port}]}]
    if unit.api_port is not None:
        ingress.append({"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": unit.api_port}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment, unit.name, unit),
        "spec": {
            "podSelector": {"matchLabels": stage_labels(deployment, unit.stage)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
