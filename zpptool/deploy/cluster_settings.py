# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes cluster needs beyond the plan: where pods may run, on which storage, and who may reach them.

The settings are a YAML file (`deploy --values FILE`). Keys have the names that Kubernetes gives them, and a key that is
unknown is refused. Settings at the top level apply to all stages; an entry of `stages` overrides them for one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from zpptool.document import read_yaml
from zpptool.errors import usage_error

MAX_VALUES_BYTES = 1 << 20
GPU_RESOURCE = "nvidia.com/gpu"
FRONT_PORT = 8080
_QUANTITY = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti)")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_RESOURCE = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?")


class Toleration(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """A taint that the pods accept; the fields are Kubernetes'."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class TopologySpread(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """How the pods of the pipeline are spread over nodes or zones; the fields are Kubernetes'."""

    max_skew: int
    topology_key: str
    when_unsatisfiable: str
    label_selector: dict[str, Any] | None = None


class Affinity(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """Rules that attract pods to nodes and pods, or keep them apart; the fields are Kubernetes'."""

    node_affinity: dict[str, Any] | None = None
    pod_affinity: dict[str, Any] | None = None
    pod_anti_affinity: dict[str, Any] | None = None


class PodSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """How the pod of a stage is placed and supplied.

    Attributes:
        node_selector: labels that its node has.
        affinity, tolerations, topology_spread_constraints, priority_class_name, runtime_class_name: as in a pod.
        storage_class_name: of its own volume; the cluster's default if empty.
        storage: size of its own volume, such as `80Gi`; estimated from its weights if empty.
        shm_size: size of /dev/shm, such as `8Gi`; tensor-parallel ranks exchange tensors there.
        gpu_resource: name of the resource that is a GPU, such as `amd.com/gpu` or `nvidia.com/mig-3g.40gb`.
    """

    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] = ()
    topology_spread_constraints: tuple[TopologySpread, ...] = ()
    priority_class_name: str = ""
    runtime_class_name: str = ""
    storage_class_name: str = ""
    storage: str = ""
    shm_size: str = ""
    gpu_resource: str = ""


class StageSettings(
    PodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """Settings of one stage, which override those of all stages; `stage` is its number."""

    stage: int


class Front(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True):
    """`zpptool serve` as the front of the pipeline: a Deployment and a Service of its own.

    Attributes:
        api_key_secret: name of the Secret whose entry `api-key` clients have to send.
        hosts: names that clients use for it, beside those of its Service.
        replicas: number of its pods.
        port: of its Service.
    """

    api_key_secret: str
    hosts: tuple[str, ...] = ()
    replicas: int = 1
    port: int = FRONT_PORT


class Monitor(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """Who reads `/metrics`.

    Attributes:
        kind: `ServiceMonitor` or `PodMonitor`, resources of the Prometheus operator.
        namespace: where Prometheus runs; the NetworkPolicy lets it in. The pipeline's own if empty.
        interval: between two readings, such as `15s`.
    """

    kind: str = "ServiceMonitor"
    namespace: str = ""
    interval: str = "15s"


class InferencePool(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """An InferencePool of the Gateway API over the head.

    Attributes:
        endpoint_picker: name of the Service of the endpoint picker.
        endpoint_picker_port: its port.
    """

    endpoint_picker: str
    endpoint_picker_port: int = 9002


class ClusterSettings(
    PodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True
):
    """All settings of a file; the pod settings apply to every stage.

    Attributes:
        stages: settings of single stages.
        image_pull_secrets: names of Secrets with credentials of the image's registry.
        model_cache: name of a claim that all pods mount (ReadWriteMany) instead of a volume for each stage.
        front: a front with an API key; none if not given.
        monitor: who reads `/metrics`.
        gateway_namespace: a namespace whose pods may reach the API, such as that of an ingress or a gateway.
        inference_pool: an InferencePool; none if not given.
    """

    stages: tuple[StageSettings, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    model_cache: str = ""
    front: Front | None = None
    monitor: Monitor = Monitor()
    gateway_namespace: str = ""
    inference_pool: InferencePool | None = None


DEFAULTS = ClusterSettings()
"""The settings of a cluster without a file of values."""


def read_values(path: Path) -> ClusterSettings:
    """Read the settings of a cluster from a YAML file.

    Raises:
        ZppError: (INVALID) it cannot be read; (USAGE) a key is unknown, or a value is not of its kind.
    """
    content = read_yaml(path, MAX_VALUES_BYTES, "file of values", "--values names one YAML file.") or {}
    try:
        return msgspec.convert(content, ClusterSettings)
    except msgspec.ValidationError as cause:
        raise usage_error(f"{path}: {cause}", "docs/deployment.md lists the keys of a file of values.") from cause


def settings_of(settings: ClusterSettings, stage: int) -> PodSettings:
    """Return the settings of one stage: its own where it has them, else those of all stages."""
    own = next((entry for entry in settings.stages if entry.stage == stage), None)
    chosen = {}
    for name in PodSettings.__struct_fields__:
        value = getattr(own, name) if own is not None else None
        chosen[name] = value or getattr(settings, name)
    return PodSettings(**chosen)


def as_object(settings: msgspec.Struct) -> dict[str, Any]:
    """Return settings as Kubernetes writes them, without those that are not set."""
    return {key: value for key, value in msgspec.to_builtins(settings).items() if value is not None}


def settings_faults(settings: ClusterSettings, num_stages: int) -> list[str]:
    """Return what in the settings cannot work for a pipeline of so many stages, each a sentence."""
    numbers = [entry.stage for entry in settings.stages]
    faults = [f"there is no stage {number}" for number in numbers if not 0 <= number < num_stages]
    faults += [f"stage {number} has two entries" for number in sorted(set(numbers)) if numbers.count(number) > 1]
    for each in (settings, *settings.stages):
        sizes = (("storage", each.storage), ("shmSize", each.shm_size))
        faults += [f"{key}: {size} is not a size such as 8Gi" for key, size in sizes if size and not _is_size(size)]
        if each.gpu_resource and not _RESOURCE.fullmatch(each.gpu_resource):
            faults.append(f"gpuResource: {each.gpu_resource} is not the name of a resource such as {GPU_RESOURCE}")
        spreads = each.topology_spread_constraints
        choices = ("DoNotSchedule", "ScheduleAnyway")
        faults += [
            f"whenUnsatisfiable: {spread.when_unsatisfiable} is neither {' nor '.join(choices)}"
            for spread in spreads
            if spread.when_unsatisfiable not in choices
        ]
    if settings.monitor.kind not in ("ServiceMonitor", "PodMonitor"):
        faults.append(f"monitor.kind: {settings.monitor.kind} is neither ServiceMonitor nor PodMonitor")
    return faults + [f"{key}: {name} is not a valid name" for key, name in _names(settings) if not _is_name(name)]


def _names(settings: ClusterSettings) -> list[tuple[str, str]]:
    """The names of objects in the settings that are set, with their keys."""
    named = [
        ("modelCache", settings.model_cache),
        ("gatewayNamespace", settings.gateway_namespace),
        ("monitor.namespace", settings.monitor.namespace),
        *(("imagePullSecrets", name) for name in settings.image_pull_secrets),
    ]
    for each in (settings, *settings.stages):
        named += [("priorityClassName", each.priority_class_name), ("runtimeClassName", each.runtime_class_name)]
        named.append(("storageClassName", each.storage_class_name))
    found = [(key, name) for key, name in named if name]
    if settings.front is not None:
        found.append(("front.apiKeySecret", settings.front.api_key_secret))
        found += [("front.hosts", name.removeprefix("*.")) for name in settings.front.hosts]
    if settings.inference_pool is not None:
        found.append(("inferencePool.endpointPicker", settings.inference_pool.endpoint_picker))
    return found


def _is_size(text: str) -> bool:
    return _QUANTITY.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return _DNS_NAME.fullmatch(text) is not None
