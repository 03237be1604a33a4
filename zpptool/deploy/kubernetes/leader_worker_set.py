# SPDX-License-Identifier: Apache-2.0
"""A pipeline as one LeaderWorkerSet (github.com/kubernetes-sigs/lws): stage = index of the pod, stage 0 is the leader.

All workers share one template, so their command chooses by index, and what a pod asks for is the most that any later
stage needs. The restart policy is `None`: a pod that is lost is started again alone, and the ring recovers.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from zpptool.deploy.cluster_settings import settings_of
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.front import front_objects
from zpptool.deploy.kubernetes.labels import Object, metadata, pipeline_labels, stage_labels
from zpptool.deploy.kubernetes.network import front_policy, group_policies
from zpptool.deploy.kubernetes.operations import disruption_budget
from zpptool.deploy.kubernetes.placement import own_claim, placed_pod, shared_volume
from zpptool.deploy.kubernetes.source import split_source
from zpptool.deploy.kubernetes.workload import KEYS, SECRET, stateful_set
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import GIB, StageUnit, key_file, stage_units
from zpptool.errors import usage_error

LWS_FILE = "leaderworkerset.yaml"
INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
INDEX = "STAGE"
"""The variable that holds a pod's index, which is the number of its stage."""
_PREVIOUS = ("--prev-stage-addr", "--prev-stage-service-addr")
_LEAST_STAGES = 2


def lws_files(deployment: Deployment) -> dict[str, str]:
    """Return the LeaderWorkerSet, the API's Service and a kustomization, by file name.

    Raises:
        ZppError: (USAGE) there is one stage only, or a setting or an image differs between later stages; (INVALID) a
            link of the plan does not use tcp.
    """
    units = stage_units(deployment, split_source(deployment))
    units = tuple(replace(unit, port=units[0].port) for unit in units)  # each pod has an address of its own
    if len(units) < _LEAST_STAGES:
        raise usage_error("a LeaderWorkerSet needs two stages or more", "Use deploy kubernetes for one stage.")
    settings = deployment.settings
    if any(settings_of(settings, unit.stage) != settings_of(settings, 1) for unit in units[2:]):
        raise usage_error(
            "the values have settings for single stages, and the workers of a LeaderWorkerSet share one template",
            "Use deploy kubernetes, or give later stages the same settings.",
        )
    objects = [_leader_worker_set(deployment, units), _api_service(deployment, units[0]), disruption_budget(deployment)]
    objects += group_policies(deployment, units)
    if settings.front is not None:
        front = front_objects(deployment, settings.front, units[0], _api_name(deployment))
        objects += [*front, front_policy(deployment, settings.front)]
    return {LWS_FILE: documents(objects), "kustomization.yaml": documents([_kustomization(deployment, units)])}


def _leader_worker_set(deployment: Deployment, units: tuple[StageUnit, ...]) -> Object:
    templates = [_template(deployment, unit) for unit in units]
    template: Object = {
        "leaderTemplate": templates[0],
        "workerTemplate": _shared_template(deployment, units[1:], templates[1:]),
        "size": len(units),
        "restartPolicy": "None",
    }
    if not deployment.settings.model_cache:
        largest = max(unit.disk_bytes for unit in units) // GIB
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{largest}Gi"}}}
        claim = own_claim({"metadata": {"name": "model"}, "spec": spec}, settings_of(deployment.settings, 0))
        template["volumeClaimTemplates"] = [claim]
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(deployment, deployment.name),
        "spec": {"replicas": 1, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template},
    }


def pod_address(deployment: Deployment, stage: int) -> str:
    """Return the name of a stage's pod, which LeaderWorkerSet publishes under a Service of the set's own name."""
    pod = f"{deployment.name}-0-{stage}" if stage else f"{deployment.name}-0"
    return f"{pod}.{deployment.name}"


def _template(deployment: Deployment, unit: StageUnit) -> Object:
    """Return the pod template of one stage, as its StatefulSet has it, with the addresses of this set."""
    template = stateful_set(deployment, unit)["spec"]["template"]
    pod = placed_pod(deployment, template["spec"], settings_of(deployment.settings, unit.stage))
    stage = pod["containers"][0]
    address = pod_address(deployment, (unit.stage or len(deployment.plan.stages)) - 1)
    pod["containers"] = [{**stage, "command": _linked(stage["command"], unit.port, address)}]
    if deployment.settings.model_cache:
        pod["volumes"] = [shared_volume(deployment.settings), *pod["volumes"]]
    return {**template, "spec": pod}


def _linked(command: list[str], port: int, previous: str) -> list[str]:
    """Return a command that binds a port, and connects to the same port of the pod of the stage before it."""
    linked = list(command)
    linked[1 + command.index("--local-bind-port")] = str(port)
    linked[1 + next(place for place, word in enumerate(command) if word in _PREVIOUS)] = f"{previous}:{port}"
    return linked


def _shared_template(deployment: Deployment, units: tuple[StageUnit, ...], templates: list[Object]) -> Object:
    """Return one pod template for all later stages: each command chooses by the pod's index."""
    pods = [template["spec"] for template in templates]
    images = sorted({container["image"] for pod in pods for container in pod["containers"]})
    if len(images) > 1:
        raise usage_error(
            f"later stages have different images ({', '.join(images)}), and the workers of a LeaderWorkerSet share one",
            "Use deploy kubernetes, or give later stages the same image.",
        )
    numbers = [unit.stage for unit in units]
    fetches = [pod["initContainers"][0]["command"] for pod in pods]
    runs = [pod["containers"][0]["command"] for pod in pods]
    first = pods[0]
    fetch, *copies = first["initContainers"]
    stage = {**first["containers"][0], "resources": _most([pod["containers"][0]["resources"] for pod in pods])}
    volumes = [
        {"name": "secret", "secret": {"secretName": _workers_secret(deployment)}} if one["name"] == "secret" else one
        for one in first["volumes"]
    ]
    own_key = ["sh", "-c", f'install -m 0600 "{SECRET}/stage_$${INDEX}.keys" {KEYS}/stage.keys']
    pod = {
        **first,
        "initContainers": [
            _indexed({**fetch, "command": _chosen(numbers, fetches)}),
            *(_indexed({**copy, "command": own_key}) for copy in copies),
        ],
        "containers": [_indexed({**stage, "command": _chosen(numbers, runs)})],
        "volumes": volumes,
    }
    own = templates[0]["metadata"]
    return {"metadata": {**own, "labels": pipeline_labels(deployment)}, "spec": pod}


def _chosen(numbers: list[int], commands: list[list[str]]) -> list[str]:
    """Return a shell command that becomes the command of the pod's own stage. `$` is doubled in commands already."""
    cases = [f"{number}) exec {shlex.join(command)} ;;" for number, command in zip(numbers, commands, strict=True)]
    return ["sh", "-c", "\n".join([f'case "$${INDEX}" in', *cases, "esac", "exit 2"])]


def _indexed(container: Object) -> Object:
    """Return a container that knows the index of its pod."""
    own = {"name": INDEX, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX_LABEL}']"}}}
    return {**container, "env": [own, *container.get("env", [])]}


def _most(resources: list[Object]) -> Object:
    """Return the largest of each resource that any of the pods asks for."""
    found: Object = {}
    for asked in resources:
        for kind, counts in asked.items():
            into = found.setdefault(kind, {})
            for name, count in counts.items():
                into[name] = max(into.get(name, count), count, key=_size)
    return found


def _size(count: str | int) -> int:
    """A count of processors, of GPUs or of GiB as a number; all of one resource have the same unit."""
    return int(str(count).removesuffix("Gi"))


def _api_name(deployment: Deployment) -> str:
    """Return the name of the API's Service; LeaderWorkerSet takes the pipeline's own name."""
    return f"{deployment.name}-api"


def _api_service(deployment: Deployment, head: StageUnit) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, _api_name(deployment), head),
        "spec": {
            "selector": stage_labels(deployment, head.stage),
            "ports": [{"name": "http", "port": head.api_port, "targetPort": "http"}],
        },
    }


def _workers_secret(deployment: Deployment) -> str:
    """Return the name of the Secret with the key files of all later stages; each pod copies its own."""
    return f"{deployment.name}-worker-keys"


def _kustomization(deployment: Deployment, units: tuple[StageUnit, ...]) -> Object:
    base: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [LWS_FILE],
    }
    if deployment.insecure:
        return base
    leader = {"name": f"{units[0].name}-keys", "files": [f"stage.keys=keys/{key_file(0)}"]}
    workers = {"name": _workers_secret(deployment), "files": [f"keys/{key_file(unit.stage)}" for unit in units[1:]]}
    return {**base, "secretGenerator": [leader, workers], "generatorOptions": {"disableNameSuffixHash": True}}
