# SPDX-License-Identifier: Apache-2.0
"""All files of a pipeline on Kubernetes, to be applied with `kubectl apply -k DIR`.

No secret is ever written: the kustomization names the key files, which are put beside it.
"""

from __future__ import annotations

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, keys_secret
from zpptool.deploy.kubernetes.network import api_service, link_service, network_policy
from zpptool.deploy.kubernetes.source import split_source
from zpptool.deploy.kubernetes.upkeep import disruption_budget, service_monitor
from zpptool.deploy.kubernetes.workload import stateful_set
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import StageUnit, key_file, stage_units

MONITOR_FILE = "monitoring/servicemonitor.yaml"
"""Apart from the rest, for it needs the Prometheus operator."""


def kubernetes_files(wish: Deployment) -> dict[str, str]:
    """The manifests by file name.

    Raises:
        ZppError: (USAGE) the source is nothing that a pod can read; (INVALID) a link is not tcp.
    """
    units = stage_units(wish, split_source(wish))
    files = {
        f"stage-{unit.stage}.yaml": documents(
            [link_service(wish, unit), stateful_set(wish, unit), network_policy(wish, unit)]
        )
        for unit in units
    }
    files["pipeline.yaml"] = documents([api_service(wish, units[0]), disruption_budget(wish)])
    resources = sorted(files)
    files[MONITOR_FILE] = documents([service_monitor(wish, units[0])])
    files["kustomization.yaml"] = documents([_kustomization(wish, units, resources)])
    return files


def _kustomization(wish: Deployment, units: tuple[StageUnit, ...], resources: list[str]) -> Object:
    base: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    }
    if wish.insecure:
        return base
    secrets = [{"name": keys_secret(unit), "files": [f"stage.keys=keys/{key_file(unit.stage)}"]} for unit in units]
    return {**base, "secretGenerator": secrets, "generatorOptions": {"disableNameSuffixHash": True}}
