# SPDX-License-Identifier: Apache-2.0
"""All manifests of a pipeline, to be applied with `kubectl apply -k DIR`.

No secret is written: the kustomization refers to key files, which the user puts beside it.
"""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.front import front_objects
from zpptool.deploy.kubernetes.labels import Object, keys_secret
from zpptool.deploy.kubernetes.network import api_service, front_policy, link_service, network_policy
from zpptool.deploy.kubernetes.operations import disruption_budget, inference_pool, monitor
from zpptool.deploy.kubernetes.placement import placed
from zpptool.deploy.kubernetes.source import split_source
from zpptool.deploy.kubernetes.workload import stateful_set
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import StageUnit, key_file, stage_units

MONITOR_FILE = "monitoring/servicemonitor.yaml"
MONITOR_FILES = {"ServiceMonitor": MONITOR_FILE, "PodMonitor": "monitoring/podmonitor.yaml"}
"""Not part of the kustomization, because they require the Prometheus operator."""
POOL_FILE = "gateway/inferencepool.yaml"
"""Not part of the kustomization, because it requires the Gateway API inference extension."""


def kubernetes_files(deployment: Deployment) -> dict[str, str]:
    """Return the manifests, by file name.

    Raises:
        ZppError: (USAGE) a pod cannot read the source; (INVALID) a link does not use tcp.
    """
    units = stage_units(deployment, split_source(deployment))
    applied, separate = manifest_objects(deployment, units)
    files = {name: documents(items) for name, items in {**applied, **separate}.items()}
    files["kustomization.yaml"] = documents([_kustomization(deployment, units, sorted(applied))])
    return files


def manifest_objects(
    deployment: Deployment, units: tuple[StageUnit, ...]
) -> tuple[dict[str, list[Object]], dict[str, list[Object]]]:
    """Return the objects by file name: those of the kustomization, and those that need a custom resource."""
    settings = deployment.settings
    applied: dict[str, list[Object]] = {}
    for unit in units:
        workload = placed(deployment, stateful_set(deployment, unit), unit.stage)
        applied[f"stage-{unit.stage}.yaml"] = [
            link_service(deployment, unit), workload, network_policy(deployment, unit)
        ]  # fmt: skip
    applied["pipeline.yaml"] = [api_service(deployment, units[0]), disruption_budget(deployment)]
    if settings.front is not None:
        front = front_objects(deployment, settings.front, units[0], deployment.name)
        applied["front.yaml"] = [*front, front_policy(deployment, settings.front)]
    separate = {MONITOR_FILES[settings.monitor.kind]: [monitor(deployment, units[0])]}
    if settings.inference_pool is not None:
        separate[POOL_FILE] = [inference_pool(deployment, settings.inference_pool, units[0])]
    return applied, separate


def _kustomization(deployment: Deployment, units: tuple[StageUnit, ...], resources: list[str]) -> Object:
    base: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    }
    if deployment.insecure:
        return base
    secrets = [{"name": keys_secret(unit), "files": [f"stage.keys=keys/{key_file(unit.stage)}"]} for unit in units]
    return {**base, "secretGenerator": secrets, "generatorOptions": {"disableNameSuffixHash": True}}
