# SPDX-License-Identifier: Apache-2.0
"""Services and network policies: a headless Service per stage, one for the API, and a policy for each link."""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.deploy.cluster_settings import Front
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.front import front_labels, front_name
from zpptool.deploy.kubernetes.labels import Object, metadata, pipeline_labels, stage_labels
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
    """Return the policy of one stage: its link is open to the receiving stage only, the API to `api_callers`."""
    receiver = {"podSelector": {"matchLabels": stage_labels(deployment, unit.receiver)}}
    ingress: list[Object] = [{"from": [receiver], "ports": [{"protocol": "TCP", "port": unit.port}]}]
    if unit.api_port is not None:
        ingress.append({"from": api_callers(deployment), "ports": [{"protocol": "TCP", "port": unit.api_port}]})
    return _policy(metadata(deployment, unit.name, unit), stage_labels(deployment, unit.stage), ingress)


def group_policies(deployment: Deployment, units: Sequence[StageUnit]) -> list[Object]:
    """Return the policies of stages that share their labels: links are open to the pipeline's own pods."""
    name, own, head = deployment.name, pipeline_labels(deployment), units[0]
    ports = [{"protocol": "TCP", "port": port} for port in sorted({unit.port for unit in units})]
    links: list[Object] = [{"from": [{"podSelector": {"matchLabels": own}}], "ports": ports}]
    api: list[Object] = [{"from": api_callers(deployment), "ports": [{"protocol": "TCP", "port": head.api_port}]}]
    return [
        _policy(metadata(deployment, f"{name}-links"), own, links),
        _policy(metadata(deployment, f"{name}-api", head), stage_labels(deployment, head.stage), api),
    ]


def api_callers(deployment: Deployment) -> list[Object]:
    """Return who may reach the head's API: its front if there is one, else the namespace and the gateway; the monitor.

    An InferencePool routes to the head's pod directly, so the gateway reaches it beside a front too.
    """
    settings = deployment.settings
    callers: list[Object] = [{"podSelector": {}}]
    if settings.front is not None:
        callers = [{"podSelector": {"matchLabels": front_labels(deployment)}}]
    if settings.gateway_namespace and (settings.front is None or settings.inference_pool is not None):
        callers.append(_namespace(settings.gateway_namespace))
    return [*callers, *_monitor(deployment, has_namespace=settings.front is None)]


def front_policy(deployment: Deployment, front: Front) -> Object:
    """Return the policy of the front: its namespace, the gateway and the monitor may reach its port."""
    callers: list[Object] = [{"podSelector": {}}]
    if deployment.settings.gateway_namespace:
        callers.append(_namespace(deployment.settings.gateway_namespace))
    callers += _monitor(deployment, has_namespace=True)
    ingress = [{"from": callers, "ports": [{"protocol": "TCP", "port": front.port}]}]
    labels = front_labels(deployment)
    return _policy({"name": front_name(deployment), "labels": labels}, labels, ingress)


def _policy(own: Object, selected: dict[str, str], ingress: list[Object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": own,
        "spec": {"podSelector": {"matchLabels": selected}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _monitor(deployment: Deployment, *, has_namespace: bool) -> list[Object]:
    """Return Prometheus as a caller: its namespace, or the pipeline's own unless all of that is let in already."""
    if deployment.settings.monitor.namespace:
        return [_namespace(deployment.settings.monitor.namespace)]
    return [] if has_namespace else [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}]


def _namespace(name: str) -> Object:
    """Return all pods of a namespace, by the label that Kubernetes gives every namespace."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
