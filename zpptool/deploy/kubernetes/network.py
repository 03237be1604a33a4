# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom: a headless Service a stage, one for the API, and a policy that lets only the next stage connect."""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, metadata, stage_labels
from zpptool.deploy.stageunit import StageUnit


def link_service(wish: Deployment, unit: StageUnit) -> Object:
    """The name of one stage: the address of its one pod, known before it is ready, for readiness needs the ring."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(wish, unit.name, unit),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": stage_labels(wish, unit.stage),
            "ports": [{"name": "link", "port": unit.port, "targetPort": "link"}],
        },
    }


def api_service(wish: Deployment, head: StageUnit) -> Object:
    """What clients talk to: stage 0's API, once it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(wish, wish.name, head),
        "spec": {
            "selector": stage_labels(wish, head.stage),
            "ports": [{"name": "http", "port": head.api_port, "targetPort": "http"}],
        },
    }


def network_policy(wish: Deployment, unit: StageUnit) -> Object:
    """Only the stage that receives from this one may connect to its link; the API is open to the namespace."""
    receiver = {"podSelector": {"matchLabels": stage_labels(wish, unit.receiver)}}
    ingress: list[Object] = [{"from": [receiver], "ports": [{"protocol": "TCP", "port": unit.port}]}]
    if unit.api_port is not None:
        ingress.append({"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": unit.api_port}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(wish, unit.name, unit),
        "spec": {
            "podSelector": {"matchLabels": stage_labels(wish, unit.stage)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
