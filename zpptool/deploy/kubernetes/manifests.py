# SPDX-License-Identifier: Apache-2.0
"""All manifests of a pipeline, to be applied with `kubectl apply -k DIR`.

No secret is written: the kustomization refers to key files, which the user puts beside it.
"""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, keys_secret
from zpptool.deploy.kubernetes.network import api_service, link_service, network_policy
from zpptool.deploy.kubernetes.operations import disruption_budget, service_monitor
from zpptool.deploy.kubernetes.source import split_source
from zpptool.deploy.kubernetes.workload import stateful_set
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import StageUnit, key_file, stage_units

MONITOR_FILE = "monitoring/servicemonitor.yaml"
"""Not part of the kustomization, because it requires the Prometheus operator."""


def kubernetes_files(deployment: Deployment) -> dict[str, str]:
    """Return the manifests, by file name.

    Raises:
        ZppError: (USAGE) a pod cannot read the source; (INVALID) a link does not use tcp.
    """
    units = stage_units(deployment, split_source(deployment))
    files = {
        f"stage-{unit.stage}.yaml": documents(
            [link_service(deployment, unit), stateful_set(deployment, unit), network_policy(deployment, unit)]
        )
        for unit in units
    }
    files["pipeline.yaml"] = documents([api_service(deployment, units[0]), disruption_budget(deployment)])
    resources = sorted(files)
    files[MONITOR_FILE] = documents([service_monitor(deployment, units[0])])
    files["kustomization.yaml"] = documents([_kustomization(deployment, units, resources)])
    return files


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
