# SPDX-License-Identifier: Apache-2.0
"""Apply the settings of a cluster to the pod of a stage: where it runs, its volume, its /dev/shm, its GPU resource."""

from __future__ import annotations

from zpptool.deploy.cluster_settings import GPU_RESOURCE, ClusterSettings, PodSettings, as_object, settings_of
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object, pipeline_labels

_PLAIN = ("nodeSelector", "affinity", "tolerations", "priorityClassName", "runtimeClassName")
"""Settings that are fields of a pod under the same name."""


def placed(deployment: Deployment, stateful_set: Object, stage: int) -> Object:
    """Return the StatefulSet of a stage with the settings of the cluster."""
    settings = deployment.settings
    own = settings_of(settings, stage)
    spec = stateful_set["spec"]
    pod = placed_pod(deployment, spec["template"]["spec"], own)
    claims = [own_claim(claim, own) for claim in spec["volumeClaimTemplates"]]
    shared = {"volumeClaimTemplates": []} if settings.model_cache else {"volumeClaimTemplates": claims}
    if settings.model_cache:
        pod["volumes"] = [shared_volume(settings), *pod["volumes"]]
    return {**stateful_set, "spec": {**spec, "template": {**spec["template"], "spec": pod}, **shared}}


def placed_pod(deployment: Deployment, pod: Object, own: PodSettings) -> Object:
    """Return the specification of a pod with the settings of its stage."""
    given = as_object(own)
    placed = {**pod, **{key: given[key] for key in _PLAIN if key in given}}
    if own.topology_spread_constraints:
        selector = {"labelSelector": {"matchLabels": pipeline_labels(deployment)}}
        placed["topologySpreadConstraints"] = [{**selector, **spread} for spread in given["topologySpreadConstraints"]]
    if deployment.settings.image_pull_secrets:
        placed["imagePullSecrets"] = [{"name": name} for name in deployment.settings.image_pull_secrets]
    if own.shm_size:
        shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": own.shm_size}}
        placed["volumes"] = [shm if volume["name"] == "shm" else volume for volume in pod["volumes"]]
    if own.gpu_resource:
        placed["containers"] = [_with_resource(container, own.gpu_resource) for container in pod["containers"]]
    return placed


def own_claim(claim: Object, own: PodSettings) -> Object:
    """Return the claim of a stage's own volume with its storage class and size."""
    spec = dict(claim["spec"])
    if own.storage_class_name:
        spec["storageClassName"] = own.storage_class_name
    if own.storage:
        spec["resources"] = {"requests": {"storage": own.storage}}
    return {**claim, "spec": spec}


def shared_volume(settings: ClusterSettings) -> Object:
    """Return the volume of the claim that all pods of the pipeline mount."""
    return {"name": "model", "persistentVolumeClaim": {"claimName": settings.model_cache}}


def _with_resource(container: Object, name: str) -> Object:
    """Return a container that asks for GPUs under another name."""
    resources = {
        kind: {(name if key == GPU_RESOURCE else key): count for key, count in counts.items()}
        for kind, counts in container["resources"].items()
    }
    return {**container, "resources": resources}
